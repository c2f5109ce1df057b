"""The executor `masked`, the reference: computes every layer and mixes by the gates."""

from typing import Any

from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.attention import RELATIVE, score_bias
from dpbert_jax.encoder.embeddings import embed
from dpbert_jax.encoder.modules import Layer
from dpbert_jax.encoder.operations import Params
from dpbert_jax.inference.path import Output, output_of, stem_of, walk
from dpbert_jax.policies.protocol import Policy
from dpbert_jax.policies.rule import Rule


def forward_masked(
    config: DPBertConfig,
    policy: Policy,
    dtype: DTypeLike,
    params: Params,
    input_ids: Int[Array, "B S"],
    attention_mask: Int[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
    rule: Rule,
    forced: Float[Array, "B P"],
) -> Output:
    """An input's path by the layer that is trained."""
    encoder = config.encoder
    module: Any = Layer(encoder, dtype)

    def layer(i: int, states: Array, bias: Array, *own: Any) -> Array:
        return module.apply({"params": params[f"layer_{i}"]}, states, bias, None, *own)

    def run(first: int, last: int, states: Array, gates: Array, mask: Array) -> Array:
        bias = score_bias(encoder, params.get(RELATIVE, {}), mask)
        slots = policy.slots(gates) if policy.slots else None
        for i in range(first, last):
            gate = gates[:, i - first, None, None].astype(states.dtype)
            own = () if slots is None else (params["adapters"][f"layer_{i}"], slots)
            states = gate * layer(i, states, bias, *own) + (1 - gate) * states
        return states

    states = embed(encoder, params["embeddings"], input_ids, token_type_ids, dtype)
    bias = score_bias(encoder, params.get(RELATIVE, {}), attention_mask)
    for i in range(stem_of(config, policy)):
        states = layer(i, states, bias)
    weights = policy.weights(params)
    states, layer_mask, tokens, carry = walk(
        config, policy, weights, states, lambda states: states, run, attention_mask, rule, forced
    )
    head = params.get("head", {})
    logits, gate_logits = policy.finish(weights, head, states[:, 0], dtype, carry)
    return output_of(logits, layer_mask, gate_logits, tokens)
