"""What the skipping executors share: prepared weights, and an input's path around the layers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.inference_layer import LayerWeights, prepare_layer
from dpbert_jax.encoder.modules import Embeddings, Head
from dpbert_jax.policies.dpbert import Params
from dpbert_jax.policies.gates import hard_gates
from dpbert_jax.policies.planner import Planner
from dpbert_jax.policies.rule import Rule

PLANNED = -1.0  # in a forced plan: the planner decides


class Weights(NamedTuple):
    """A model's weights on the device, layers in the layout of `inference.layer`."""

    embeddings: Params
    layers: tuple[LayerWeights, ...]  # all L, stem first
    planner: Params  # empty where there is none
    head: Params


def prepare(config: DPBertConfig, params: Params, dtype: DTypeLike) -> Weights:
    """Lays out the parameters for inference, once; the caller's are left alone."""
    layers = range(config.encoder.num_hidden_layers)
    return jax.device_put(
        Weights(
            params["embeddings"],
            tuple(prepare_layer(config.encoder, params[f"layer_{i}"], dtype) for i in layers),
            params.get("planner", {}),
            params["head"],
        )
    )


def embed(
    config: DPBertConfig,
    dtype: DTypeLike,
    weights: Weights,
    input_ids: Int[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
    position_ids: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S D"]:
    """What the first layer reads."""
    module: Any = Embeddings(config.encoder, dtype)
    variables = {"params": weights.embeddings}
    return module.apply(variables, input_ids, token_type_ids, position_ids=position_ids)


def decide(
    config: DPBertConfig,
    weights: Weights,
    stem_states: Float[Array, "B S D"],
    attention_mask: Int[Array, "B S"],
    rule: Rule,
    forced: Float[Array, "B P"],
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """Gates and gate logits.

    The planner runs also where a forced gate overrules it, so that a forced plan costs what one of
    the planner's own does.
    """
    if config.planner is None:
        nothing = jnp.zeros((stem_states.shape[0], 0))
        return nothing, nothing
    module: Any = Planner(config.planner, config.num_gates)
    gate_logits = module.apply({"params": weights.planner}, stem_states, attention_mask)
    return choose(config, gate_logits, rule, forced), gate_logits


def choose(
    config: DPBertConfig,
    gate_logits: Float[Array, "B P"],
    rule: Rule,
    forced: Float[Array, "B P"],
) -> Float[Array, "B P"]:
    """The rule's gates, but for those that are forced."""
    gates = hard_gates(gate_logits, rule.threshold, rule.top_k, config.min_gates)
    return jnp.where(forced == PLANNED, gates, forced)


def classify(
    config: DPBertConfig, dtype: DTypeLike, weights: Weights, first: Float[Array, "B D"]
) -> Float[Array, "B C"]:
    """Logits from the first token's state."""
    module: Any = Head(config.encoder, dtype)
    return module.apply({"params": weights.head}, first[:, None])[1]
