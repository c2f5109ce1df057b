"""What the skipping executors share: prepared weights, and an input's path from look to look."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.attention import RELATIVE
from dpbert_jax.encoder.inference_layer import (
    LayerAdapters,
    LayerWeights,
    prepare_adapters,
    prepare_layer,
)
from dpbert_jax.encoder.operations import Params
from dpbert_jax.policies.protocol import Carry, Policy, TokenPolicy
from dpbert_jax.policies.rule import Rule


class DPBertOutput(NamedTuple):
    """logits [B, C] float32; layer_mask [B, L], 1 = run; gate_logits [B, P], P = L - stem."""

    logits: Array
    layer_mask: Array
    gate_logits: Array


class TokenOutput(NamedTuple):
    """What a policy that drops tokens gives; tokens [B, L]: those that each layer has."""

    logits: Array
    layer_mask: Array
    gate_logits: Array
    tokens: Array


Output = DPBertOutput | TokenOutput


def output_of(logits: Array, layer_mask: Array, gate_logits: Array, tokens: Array | None) -> Output:
    """An output with the tokens, where there are any to tell."""
    made = DPBertOutput(logits, layer_mask, gate_logits)
    return made if tokens is None else TokenOutput(*made, tokens)


class Weights(NamedTuple):
    """A model's weights on the device, layers in the layout of `encoder.inference_layer`."""

    embeddings: Params
    relative: Params  # of attention's bias by distance; empty where there is none
    layers: tuple[LayerWeights, ...]  # all L, stem first
    policy: Params
    head: Params  # empty where the policy has the last word
    adapters: tuple[LayerAdapters, ...] = ()  # of the planned layers, where the model has any


def prepare(config: DPBertConfig, policy: Policy, params: Params, dtype: DTypeLike) -> Weights:
    """Lays out the parameters for inference, once; the caller's are left alone."""
    layers = range(config.encoder.num_hidden_layers)
    return jax.device_put(
        Weights(
            params["embeddings"],
            params.get(RELATIVE, {}),
            tuple(prepare_layer(config.encoder, params[f"layer_{i}"], dtype) for i in layers),
            policy.weights(params),
            params.get("head", {}),
            tuple(
                prepare_adapters(config.encoder, params["adapters"][f"layer_{i}"], dtype)
                for i in layers[config.stem_layers :]
            )
            if policy.slots
            else (),
        )
    )


class Segment(NamedTuple):
    """A look, and the layers `first` .. `last` - 1 that it decides on."""

    look: int
    first: int
    last: int
    gates: slice  # of a plan's gates [B, P]


def stem_of(config: DPBertConfig, policy: Policy) -> int:
    """Layers that run for every input."""
    return policy.looks[0] if policy.looks else config.encoder.num_hidden_layers


def segments(config: DPBertConfig, policy: Policy) -> list[Segment]:
    """The looks of a policy, in their order."""
    stem, ends = stem_of(config, policy), [*policy.looks, config.encoder.num_hidden_layers][1:]
    return [
        Segment(number, first, last, slice(first - stem, last - stem))
        for number, (first, last) in enumerate(zip(policy.looks, ends, strict=True))
    ]


def walk(
    config: DPBertConfig,
    policy: Policy,
    weights: Params,
    states: Array,
    as_rows: Callable[[Array], Float[Array, "B S D"]],
    run: Callable[[int, int, Array, Float[Array, "B N"], Int[Array, "B S"]], Array],
    attention_mask: Int[Array, "B S"],
    rule: Rule,
    forced: Float[Array, "B P"],
) -> tuple[Array, Float[Array, "B L"], Int[Array, "B L"] | None, Carry]:
    """From the stem's output to the last states, plan, tokens, and what the policy took along.

    `run(first, last, states, gates, attention_mask)` runs layers by their gates; `as_rows` shows a
    policy the states.
    """
    rows, stem = attention_mask.shape[0], stem_of(config, policy)
    drops = isinstance(policy, TokenPolicy)
    carry, plan = policy.begin(rows), [jnp.ones((rows, stem))]
    tokens = [jnp.broadcast_to(attention_mask.sum(axis=1)[:, None], (rows, stem))] if drops else []
    for look, first, last, columns in segments(config, policy):
        seen = as_rows(states)
        gates, carry = policy.look(
            look, weights, seen, attention_mask, rule, forced[:, columns], carry
        )
        if drops:
            attention_mask = policy.select(look, weights, seen, attention_mask, rule)
            left = attention_mask.sum(axis=1)[:, None]
            tokens.append(jnp.broadcast_to(left, gates.shape))
        states = run(first, last, states, gates, attention_mask)
        plan.append(gates)
    kept = jnp.concatenate(tokens, axis=1) if drops else None
    return states, jnp.concatenate(plan, axis=1), kept, carry
