"""A transformer layer as the skipping executors run it: the numbers of `modules.Layer`, faster.

Three things differ from the layer that is trained. Weights lie as [out, in] and hidden states as
[D, B, S], feature first: so neither operand of a product has to be repacked, which at few tokens
takes as long as the product. Query, key and value are one product. Weights are in the compute
type already. docs/performance.md has what each is worth.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.operations import ACTIVATIONS


class LayerWeights(NamedTuple):
    """A layer's weights; matrices [out, in] in the compute type, the rest float32."""

    qkv: Array  # [3 D, D], the query part scaled by 1 / sqrt(K)
    qkv_bias: Array
    attention_output: Array  # [D, D]
    attention_output_bias: Array
    attention_scale: Array
    attention_shift: Array
    intermediate: Array  # [F, D]
    intermediate_bias: Array
    output: Array  # [D, F]
    output_bias: Array
    output_scale: Array
    output_shift: Array


def prepare_layer(config: EncoderConfig, params: dict[str, Any], dtype: DTypeLike) -> LayerWeights:
    """The weights of a layer from its parameters `layer_i`."""
    scale = config.head_size**-0.5

    def matrix(name: str) -> Array:
        return jnp.asarray(params[name]["kernel"]).T

    def bias(name: str) -> Array:
        return jnp.asarray(params[name]["bias"])

    first, second = params["attention_layer_norm"], params["output_layer_norm"]
    qkv = jnp.concatenate([matrix("query") * scale, matrix("key"), matrix("value")])
    return LayerWeights(
        qkv=qkv.astype(dtype),
        qkv_bias=jnp.concatenate([bias("query") * scale, bias("key"), bias("value")]),
        attention_output=matrix("attention_output").astype(dtype),
        attention_output_bias=bias("attention_output"),
        attention_scale=jnp.asarray(first["scale"]),
        attention_shift=jnp.asarray(first["bias"]),
        intermediate=matrix("intermediate").astype(dtype),
        intermediate_bias=bias("intermediate"),
        output=matrix("output").astype(dtype),
        output_bias=bias("output"),
        output_scale=jnp.asarray(second["scale"]),
        output_shift=jnp.asarray(second["bias"]),
    )


class Factors(NamedTuple):
    """A product's low-rank additions; a leading axis counts depths, or rows of a batch."""

    down: Array  # [N, R, in]
    up: Array  # [N, out, R]


class LayerAdapters(NamedTuple):
    """A layer's adapters (`encoder.adapters`); the products' are None where the rank is 0.

    A leading axis counts depths, with zeros for all layers last, or the rows of a batch.
    """

    qkv: Factors | None  # down [N, 3 R, D], up [N, 3 D, R]; the query part scaled by 1 / sqrt(K)
    attention_output: Factors | None
    intermediate: Factors | None
    output: Factors | None
    attention_scale: Array  # [N, D]
    attention_shift: Array
    output_scale: Array
    output_shift: Array


def prepare_adapters(
    config: EncoderConfig, params: dict[str, Any], dtype: DTypeLike
) -> LayerAdapters:
    """A layer's adapters of every depth."""

    def extended(array: Any) -> Array:
        return jnp.pad(jnp.asarray(array), [(0, 1), *[(0, 0)] * (array.ndim - 1)])

    def factors(*names: str) -> Factors | None:
        if names[0] not in params:
            return None
        downs = [params[name]["down"].transpose(0, 2, 1) for name in names]
        ups = [params[name]["up"].transpose(0, 2, 1) for name in names]
        if names[0] == "query":
            ups[0] = ups[0] * config.head_size**-0.5
        down, up = (extended(jnp.concatenate(part, axis=1)) for part in (downs, ups))
        return Factors(down.astype(dtype), up.astype(dtype))

    first, second = params["attention_layer_norm"], params["output_layer_norm"]
    return LayerAdapters(
        qkv=factors("query", "key", "value"),
        attention_output=factors("attention_output"),
        intermediate=factors("intermediate"),
        output=factors("output"),
        attention_scale=extended(first["scale"]),
        attention_shift=extended(first["bias"]),
        output_scale=extended(second["scale"]),
        output_shift=extended(second["bias"]),
    )


def run_layer(
    config: EncoderConfig,
    weights: LayerWeights,
    states: Float[Array, "D B S"],
    bias: Float[Array, "B #H #S S"],
    adapters: LayerAdapters | None = None,
    *,
    attend: Callable[..., Array] | None = None,
) -> Float[Array, "D B S"]:
    """Post-norm self-attention and feed-forward; `bias` is added to the scores.

    `adapters` are picked from those of every depth: each row's own, or one for all rows. `attend`
    stands in for `attention`.
    """
    heads = (config.num_attention_heads, config.head_size, *states.shape[1:])
    flat = states.reshape(states.shape[0], -1)  # [D, B * S]

    def product(name: str, kernel: Array, inputs: Array, bias: Array) -> Array:
        output = _dense(kernel, inputs, bias)
        own: Factors | None = getattr(adapters, name, None)
        if own is None:
            return output
        rows = own.down.shape[0]
        # Where all rows share them, all tokens are as of one.
        by_row = inputs.reshape(len(inputs), *((1, -1) if rows == 1 else states.shape[1:]))
        inner = jnp.einsum("bri,ibs->brs", own.down, by_row)
        # Query, key and value have factors of their own in one stack.
        parts = own.down.shape[1] // own.up.shape[2]
        stacked = inner.reshape(rows, parts, -1, inner.shape[-1])
        up = own.up.reshape(rows, parts, -1, own.up.shape[2])
        outer = jnp.einsum("bpor,bprs->pobs", up, stacked)
        return output + outer.reshape(output.shape)

    def normalise(name: str, inputs: Array, scale: Array, shift: Array) -> Array:
        about: Any = (scale[:, None], shift[:, None])
        if adapters is not None:
            tables = (getattr(adapters, f"{name}_{part}") for part in ("scale", "shift"))
            spread = (jnp.broadcast_to(t.T[:, :, None], states.shape) for t in tables)
            own = (table.reshape(inputs.shape) for table in spread)
            about = tuple(shared + added for shared, added in zip(about, own, strict=True))
        return _layer_norm(inputs, about[0], about[1], config.layer_norm_eps)

    qkv = product("qkv", weights.qkv, flat, weights.qkv_bias)
    query, key, value = qkv.reshape(3, *heads)  # [H, K, B, S]
    context = (attend or attention)(query, key, value, bias).reshape(flat.shape)
    attended = product(
        "attention_output", weights.attention_output, context, weights.attention_output_bias
    )
    flat = normalise("attention", flat + attended, weights.attention_scale, weights.attention_shift)
    expanded = product("intermediate", weights.intermediate, flat, weights.intermediate_bias)
    expanded = ACTIVATIONS[config.hidden_act](expanded)  # [F, B * S]
    output = product("output", weights.output, expanded, weights.output_bias)
    flat = normalise("output", flat + output, weights.output_scale, weights.output_shift)
    return flat.reshape(states.shape)


def attention(
    query: Float[Array, "H K B S"],
    key: Float[Array, "H K B S"],
    value: Float[Array, "H K B S"],
    bias: Float[Array, "B #H #S S"],
) -> Float[Array, "H K B S"]:
    """The context of every token; `query` is scaled already, the softmax is float32."""
    scores = jnp.einsum("hkbq,hkbs->bhqs", query, key).astype(jnp.float32) + bias
    probs = jax.nn.softmax(scores).astype(value.dtype)  # [B, H, S, S]
    return jnp.einsum("hkbs,bhqs->hkbq", value, probs)


def _dense(kernel: Array, inputs: Array, bias: Array) -> Array:
    """[out, in] times [in, T], plus the bias."""
    return kernel @ inputs + bias[:, None].astype(inputs.dtype)


def _layer_norm(inputs: Array, scale: Array, shift: Array, epsilon: float) -> Array:
    """Over the features, the first axis; statistics in float32; scale and shift [D, 1 or T]."""
    centred = inputs.astype(jnp.float32)
    centred = centred - centred.mean(axis=0)[None]
    variance = (centred * centred).mean(axis=0)[None]
    normalised = centred * jax.lax.rsqrt(variance + epsilon) * scale + shift
    return normalised.astype(inputs.dtype)
