"""The planner: from the stem's output to a logit for every planned layer.

A design of this project; the paper's planner was never published. It reads three cheap summaries
(masked mean, first token, length) of hidden states that a BERT layer has already contextualised,
because summaries of bare embeddings told it next to nothing about an input.

The budget is no input of it: a layer runs where its logit reaches the threshold that belongs to the
budget. So plans are nested, a larger budget runs all that a smaller one did, and the realised cost
never falls as the budget rises. A planner that read the budget as well was no better
(docs/experiments.md).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig, PlannerConfig
from dpbert_jax.encoder.flops import Length
from dpbert_jax.encoder.operations import Params, dense

LENGTH = -1  # its place among what the planner reads


class Product(NamedTuple):
    """A dense layer of the planner: its sizes, and the spread that its kernel is drawn with."""

    inputs: int
    outputs: int
    stddev: float


def planner_products(config: DPBertConfig) -> dict[str, Product]:
    """The planner's parameters; none where the model has no planner."""
    if config.planner is None:
        return {}
    features, width = 2 * config.encoder.hidden_size + 1, config.planner.hidden_size
    return {
        "input": Product(features, width, 1.0),
        "output": Product(width, config.num_gates, 0.1),
    }


def planner_flops(config: DPBertConfig, sequence_length: Length) -> Length:
    """Operations of the planner for one row: the mean over tokens and the products."""
    products = planner_products(config).values()
    if not products:
        return 0
    multiplied = sum(product.inputs * product.outputs for product in products)
    return 2 * sequence_length * config.encoder.hidden_size + 2 * multiplied


def gate_logits(
    config: DPBertConfig,
    planner: Params,
    hidden_states: Float[Array, "B S D"],
    attention_mask: Int[Array, "B S"],
) -> Float[Array, "B P"]:
    """The planner's logits of the planned layers; [B, 0] where the model has none."""
    if config.planner is None:
        return jnp.zeros((hidden_states.shape[0], 0))
    return judge(config, planner, planner_features(hidden_states, attention_mask))


def judge(
    config: DPBertConfig, planner: Params, features: Float[Array, "N F"]
) -> Float[Array, "N P"]:
    """Gate logits from what the planner reads: a two-layer perceptron, under 0.1 % of the FLOPs.

    Adam moves every weight by about its rate, so a unit moves by the rate times the sum of its
    inputs' sizes. Inputs are therefore scaled to unit norm: with a thousand inputs of size 1, the
    planner's high rate drove all units into saturation within a few steps.
    """
    assert config.planner is not None
    hidden = jnp.tanh(dense(planner["input"], features, jnp.float32))
    hidden = hidden * config.planner.hidden_size**-0.5
    return bounded(config.planner, dense(planner["output"], hidden, jnp.float32))


def bounded(config: PlannerConfig, logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """Logits squeezed into (-bound, bound)."""
    return config.logit_bound * jnp.tanh(logits / config.logit_bound)


def planner_features(
    hidden_states: Float[Array, "B S D"], attention_mask: Int[Array, "B S"]
) -> Float[Array, "B F"]:
    """What the planner reads of an input; F = 2 D + 1, float32."""
    # float32 throughout: a plan is a comparison, and bfloat16 would flip near ties.
    hidden_states = hidden_states.astype(jnp.float32)
    weights = attention_mask.astype(jnp.float32)[..., None]
    length = weights.sum(axis=1)  # [B, 1]
    mean = (hidden_states * weights).sum(axis=1) / jnp.maximum(length, 1.0)
    pair = jnp.stack([mean, hidden_states[:, 0]], axis=1)  # [B, 2, D]
    centred = pair - pair.mean(axis=-1, keepdims=True)
    normal = centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6)
    summary = normal.reshape(pair.shape[0], -1)
    summary = summary * summary.shape[-1] ** -0.5  # unit norm
    # The barrier changes no number. Without it XLA fuses the concatenation, and its compiler
    # for CUDA then fails (jax 0.10.2, 0.11.2: "Reshape input and output shapes must be the same").
    parts = jax.lax.optimization_barrier([summary, jnp.log2(length / 32.0)])
    return jnp.concatenate(parts, axis=-1)
