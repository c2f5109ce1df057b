"""A transformer layer as the skipping executors run it: the numbers of `modules.Layer`, faster.

Three things differ from the layer that is trained. Weights lie as [out, in] and hidden states as
[D, B, S], feature first: so neither operand of a product has to be repacked, which at few tokens
takes as long as the product. Query, key and value are one product. Weights are in the compute
type already. docs/performance.md has what each is worth.
"""

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


def run_layer(
    config: EncoderConfig,
    weights: LayerWeights,
    states: Float[Array, "D B S"],
    bias: Float[Array, "B #H #S S"],
) -> Float[Array, "D B S"]:
    """Post-norm self-attention and feed-forward; `bias` is added to the scores."""
    heads = (config.num_attention_heads, config.head_size, *states.shape[1:])
    flat = states.reshape(states.shape[0], -1)  # [D, B * S]
    qkv = _dense(weights.qkv, flat, weights.qkv_bias)
    query, key, value = qkv.reshape(3, *heads)  # [H, K, B, S]
    scores = jnp.einsum("hkbq,hkbs->bhqs", query, key).astype(jnp.float32) + bias
    probs = jax.nn.softmax(scores).astype(states.dtype)  # [B, H, S, S]
    context = jnp.einsum("hkbs,bhqs->hkbq", value, probs).reshape(flat.shape)
    attended = _dense(weights.attention_output, context, weights.attention_output_bias)
    flat = _layer_norm(
        flat + attended, weights.attention_scale, weights.attention_shift, config.layer_norm_eps
    )
    expanded = _dense(weights.intermediate, flat, weights.intermediate_bias)
    expanded = ACTIVATIONS[config.hidden_act](expanded)  # [F, B * S]
    output = _dense(weights.output, expanded, weights.output_bias)
    flat = _layer_norm(
        flat + output, weights.output_scale, weights.output_shift, config.layer_norm_eps
    )
    return flat.reshape(states.shape)


def _dense(kernel: Array, inputs: Array, bias: Array) -> Array:
    """[out, in] times [in, T], plus the bias."""
    return kernel @ inputs + bias[:, None].astype(inputs.dtype)


def _layer_norm(inputs: Array, scale: Array, shift: Array, epsilon: float) -> Array:
    """Over the features, the first axis; statistics in float32."""
    centred = inputs.astype(jnp.float32)
    centred = centred - centred.mean(axis=0)[None]
    variance = (centred * centred).mean(axis=0)[None]
    normalised = centred * jax.lax.rsqrt(variance + epsilon) * scale[:, None] + shift[:, None]
    return normalised.astype(inputs.dtype)
