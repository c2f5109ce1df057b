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


class Planner(nn.Module):
    """A two-layer perceptron, conditioned on the budget; under 0.1 % of a BERT's FLOPs."""

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
        features = jnp.concatenate(
            [normalise(mean), normalise(hidden_states[:, 0]), jnp.log2(length / 32.0)], axis=-1
        )
        spend = jnp.stack([2 * budget - 1, (2 * budget - 1) ** 2], axis=-1)  # [B, 2]
        hidden = nn.tanh(
            nn.Dense(self.config.hidden_size, name="input")(features)
            + nn.Dense(self.config.hidden_size, use_bias=False, name="budget")(spend)
        )
        start = nn.initializers.constant(self.config.initial_logit)
        small = nn.initializers.normal(0.02)
        raw = nn.Dense(self.num_gates, kernel_init=small, bias_init=start, name="output")(hidden)
        raw = raw + nn.Dense(self.num_gates, use_bias=False, name="budget_output")(spend)
        bound = self.config.logit_bound
        return bound * jnp.tanh(raw / bound)
