"""Executors that are one compiled program and skip: `cond` and `chunked`.

The program serves every plan, budget and rule. `cond` skips a layer that no row of the batch
needs; `chunked` runs a layer on chunks of only those rows that need it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.encoder.attention import attention_bias, score_bias
from dpbert_jax.encoder.embeddings import embed
from dpbert_jax.encoder.inference_layer import LayerAdapters, LayerWeights, run_layer
from dpbert_jax.inference.path import Output, Weights, output_of, stem_of, walk
from dpbert_jax.policies.protocol import Policy, TokenPolicy
from dpbert_jax.policies.rule import Rule

Encode = Callable[..., Array]

# A chunk of fewer tokens leaves the device idle, one of more computes rows that are then dropped.
CHUNK_TOKENS = {"cpu": 256, "gpu": 2048, "tpu": 2048}


def encode_cond(
    config: EncoderConfig,
    layers: Sequence[LayerWeights],
    states: Float[Array, "D B S"],
    bias: Float[Array, "B #H #S S"],
    gates: Float[Array, "B P"],
    adapters: Sequence[LayerAdapters] = (),
    slots: Int[Array, " B"] | None = None,
) -> Float[Array, "D B S"]:
    """One `lax.cond` a layer: it runs if any row needs it, and rows that do not keep their state.

    At batch 1 that is skipping per input.
    """

    def run(states: Array, weights: LayerWeights, gate: Array, *of_depths: LayerAdapters) -> Array:
        output = run_layer(config, weights, states, bias, *_picked(of_depths, slots))
        # A single row that got here needs the layer: nothing to select.
        return output if gate.shape[0] == 1 else jnp.where(gate[None, :, None] > 0, output, states)

    def skip(states: Array, *_: Any) -> Array:
        return states

    for i, weights in enumerate(layers):
        gate = gates[:, i]
        about = (states, weights, gate, *adapters[i : i + 1])
        states = jax.lax.cond((gate > 0).any(), run, skip, *about)
    return states


def _picked(
    of_depths: Sequence[LayerAdapters], slots: Int[Array, " B"] | None
) -> list[LayerAdapters]:
    """Each row's adapters, of those of every depth."""
    return [jax.tree.map(lambda array: array[slots], adapters) for adapters in of_depths]


def encode_chunked(
    config: EncoderConfig,
    layers: Sequence[LayerWeights],
    states: Float[Array, "D B S"],
    bias: Float[Array, "B #H #S S"],
    gates: Float[Array, "B P"],
    adapters: Sequence[LayerAdapters] = (),
    slots: Int[Array, " B"] | None = None,
    *,
    chunk_size: int,
) -> Float[Array, "D B S"]:
    """A loop a layer over chunks of the rows that need it; the last chunk's spare rows are dropped.

    The host is not asked: the number of chunks is a value of the program.
    """
    rows = states.shape[1]
    chunk_size = min(chunk_size, rows)
    for i, weights in enumerate(layers):
        needed = gates[:, i] > 0
        count = needed.sum()
        order = jnp.argsort(~needed, stable=True)  # those that need the layer come first
        order = jnp.pad(order, (0, -rows % chunk_size))

        def run(
            n: Array,
            states: Array,
            *,
            weights: LayerWeights = weights,
            order: Array = order,
            count: Array = count,
            of_depths: Sequence[LayerAdapters] = adapters[i : i + 1],
        ) -> Array:
            start = n * chunk_size
            picked = jax.lax.dynamic_slice(order, (start,), (chunk_size,))
            own = _picked(of_depths, None if slots is None else slots[picked])
            output = run_layer(config, weights, states[:, picked], bias[picked], *own)
            spare = start + jnp.arange(chunk_size) >= count
            # No row has the number `rows`: what is sent there is dropped.
            return states.at[:, jnp.where(spare, rows, picked)].set(output, mode="drop")

        states = jax.lax.fori_loop(0, -(-count // chunk_size), run, states)
    return states


def run_shortened(
    encode: Encode,
    states: Float[Array, "D B S"],
    gates: Float[Array, "B P"],
    attention_mask: Int[Array, "B S"],
) -> Float[Array, "D B S"]:
    """Layers on the tokens that are left, moved together: at the fewest eighths that hold them.

    One `lax.switch` over eight lengths; all other tokens keep their state. `encode` is given
    states, attention bias and gates.
    """
    rows, longest = attention_mask.shape
    # Without duplicates, but unsorted: an export's length is a symbol, which has no order.
    lengths = list(dict.fromkeys(-(-longest * eighths // 8) for eighths in range(1, 9)))
    order = jnp.argsort(attention_mask == 0, axis=1, stable=True)  # those left come first

    def at(length: Any, states: Array) -> Array:
        place = (slice(None), jnp.arange(rows)[:, None], order[:, :length])
        mask = jnp.take_along_axis(attention_mask, order[:, :length], axis=1)
        return states.at[place].set(encode(states[place], attention_bias(mask), gates))

    needed = jnp.searchsorted(jnp.array(lengths), attention_mask.sum(axis=1).max())
    return jax.lax.switch(needed, [partial(at, length) for length in lengths], states)


def forward(
    config: DPBertConfig,
    policy: Policy,
    dtype: DTypeLike,
    encode: Encode,
    weights: Weights,
    input_ids: Int[Array, "B S"],
    attention_mask: Int[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
    rule: Rule,
    forced: Float[Array, "B P"],
) -> Output:
    """The whole path of an input: embeddings, stem, looks and the layers between them, answer."""
    encoder = config.encoder
    states = embed(encoder, weights.embeddings, input_ids, token_type_ids, dtype)
    states = states.transpose(2, 0, 1)
    bias = score_bias(encoder, weights.relative, attention_mask)
    for layer in weights.layers[: stem_of(config, policy)]:
        states = run_layer(encoder, layer, states, bias)

    def run(first: int, last: int, states: Array, gates: Array, mask: Array) -> Array:
        layers, slots = weights.layers[first:last], policy.slots
        if isinstance(policy, TokenPolicy):
            return run_shortened(partial(encode, encoder, layers), states, gates, mask)
        if slots is None:
            return encode(encoder, layers, states, bias, gates)
        own, none = slots(gates), len(weights.adapters[0].output_scale) - 1
        # Where every plan has all layers no adapter is touched: that path is as fast as without.
        return jax.lax.cond(
            (own == none).all(),
            lambda states: encode(encoder, layers, states, bias, gates),
            lambda states: encode(encoder, layers, states, bias, gates, weights.adapters, own),
            states,
        )

    states, layer_mask, tokens, carry = walk(
        config,
        policy,
        weights.policy,
        states,
        lambda states: states.transpose(1, 2, 0),
        run,
        attention_mask,
        rule,
        forced,
    )
    first_token = states[:, :, 0].T
    logits, gate_logits = policy.finish(weights.policy, weights.head, first_token, dtype, carry)
    return output_of(logits, layer_mask, gate_logits, tokens)


def default_chunk_size(platform: str, sequence_length: int) -> int:
    """Rows of a chunk that keep this kind of device busy."""
    return max(CHUNK_TOKENS.get(platform, CHUNK_TOKENS["gpu"]) // sequence_length, 1)
