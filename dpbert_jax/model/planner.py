"""The planner: from the stem's output and a budget to a logit for every planned layer.

A design of this project; the paper's planner was never published. It reads three cheap summaries
(masked mean, first token, length) of hidden states that a BERT layer has already contextualised,
because summaries of bare embeddings told it next to nothing about an input.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dpbert_jax.config import PlannerConfig

BUDGET_FEATURES = 2
BUDGET_GAIN = 4.0
PRIOR_RANGE = (0.02, 0.98)


class Planner(nn.Module):
    """A two-layer perceptron, conditioned on the budget; under 0.1 % of a BERT's FLOPs.

    It starts at the budget: the logits' prior gives every gate the probability that meets the
    budget on average, so training only has to learn which layers matter, and for which inputs.

    Adam moves every weight by about its rate, so a unit moves by the rate times the sum of its
    inputs' sizes. Inputs are therefore scaled to unit norm: with a thousand inputs of size 1, the
    planner's high rate drove all units into saturation within a few steps.
    """

    config: PlannerConfig
    num_gates: int

    @nn.compact
    def __call__(
        self,
        hidden_states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        budget: Float[Array, " B"],
    ) -> Float[Array, "B P"]:
        # float32 throughout: a plan is a comparison, and bfloat16 would flip near ties.
        hidden_states = hidden_states.astype(jnp.float32)
        weights = attention_mask.astype(jnp.float32)[..., None]
        length = weights.sum(axis=1)  # [B, 1]
        mean = (hidden_states * weights).sum(axis=1) / jnp.maximum(length, 1.0)
        normalise = nn.LayerNorm(use_bias=False, use_scale=False)
        summary = jnp.concatenate([normalise(mean), normalise(hidden_states[:, 0])], axis=-1)
        summary = summary * summary.shape[-1] ** -0.5  # unit norm
        features = jnp.concatenate([summary, jnp.log2(length / 32.0)], axis=-1)  # [B, 2 D + 1]

        lowest, width = self.config.min_budget, self.config.hidden_size
        centred = (2 * budget - 1 - lowest) / (1 - lowest)  # the trained range is -1 .. 1
        spend = BUDGET_GAIN * jnp.stack([centred, centred**2], axis=-1)  # [B, 2]

        unit, small = nn.initializers.normal(1.0), nn.initializers.normal(0.1)
        hidden = nn.tanh(
            nn.Dense(width, kernel_init=unit, name="input")(features)
            + nn.Dense(width, kernel_init=small, use_bias=False, name="budget")(spend)
        )
        hidden = hidden * width**-0.5
        learnt = nn.Dense(self.num_gates, kernel_init=small, name="output")(hidden) + nn.Dense(
            self.num_gates, kernel_init=small, use_bias=False, name="budget_output"
        )(spend)
        bound = self.config.logit_bound
        return bound * jnp.tanh((self._prior(budget) + learnt) / bound)

    def _prior(self, budget: Float[Array, " B"]) -> Float[Array, "B 1"]:
        """The logit at which the stem and P gates of equal probability cost the budget."""
        layers = self.num_gates + self.config.stem_layers
        share = (budget * layers - self.config.stem_layers) / self.num_gates
        share = jnp.clip(share, *PRIOR_RANGE)
        return jnp.log(share / (1 - share))[:, None]
