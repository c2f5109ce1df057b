"""Ways to run on a GPU that are timed before any is taken: none of them is what a model does today.

`decided`: which layers a batch needs is one small vector, made at once, rather than a reduction
before each layer. `fused_attention`: JAX's own attention in place of two products and a softmax; on
a GPU in bfloat16 by cuDNN.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.encoder.attention import score_bias
from dpbert_jax.encoder.embeddings import embed
from dpbert_jax.encoder.inference_layer import LayerWeights, attention, run_layer
from dpbert_jax.inference.in_graph import forward
from dpbert_jax.inference.path import Weights
from dpbert_jax.policies.protocol import Planned


def encode_decided(
    config: EncoderConfig,
    layers: Sequence[LayerWeights],
    states: Float[Array, "D B S"],
    bias: Float[Array, "B #H #S S"],
    gates: Float[Array, "B P"],
) -> Float[Array, "D B S"]:
    """`encode_cond`, with the layers that are needed decided in one vector [P]."""
    needed = (gates > 0).any(axis=0)

    def run(states: Array, weights: LayerWeights, gate: Array) -> Array:
        output = run_layer(config, weights, states, bias)
        return output if gate.shape[0] == 1 else jnp.where(gate[None, :, None] > 0, output, states)

    for i, weights in enumerate(layers):
        about = (states, weights, gates[:, i])
        states = jax.lax.cond(needed[i], run, lambda states, *_: states, *about)
    return states


def decided_program(config: DPBertConfig, dtype: DTypeLike) -> Any:
    """`cond`'s program with `encode_decided`: (weights, inputs, rule, forced) -> output."""
    return jax.jit(partial(forward, config, Planned(config), dtype, encode_decided))


def fused_attention(
    query: Float[Array, "H K B S"],
    key: Float[Array, "H K B S"],
    value: Float[Array, "H K B S"],
    bias: Float[Array, "B #H #S S"],
    *,
    implementation: str | None = None,
) -> Float[Array, "H K B S"]:
    """`inference_layer.attention` by `jax.nn.dot_product_attention`; `query` is scaled already."""
    by_rows = (part.transpose(2, 3, 0, 1) for part in (query, key, value))  # [B, S, H, K]
    held = jnp.maximum(bias, jnp.finfo(jnp.bfloat16).min / 2).astype(value.dtype)
    choice: Any = implementation
    context = jax.nn.dot_product_attention(*by_rows, bias=held, scale=1.0, implementation=choice)
    return context.transpose(2, 3, 0, 1)


def dense_program(config: DPBertConfig, dtype: DTypeLike, attend: Callable[..., Array]) -> Any:
    """All layers with this attention: (weights, inputs) -> the first token's states [B, D]."""
    encoder = config.encoder

    def program(weights: Weights, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        states = embed(encoder, weights.embeddings, input_ids, token_type_ids, dtype)
        states = states.transpose(2, 0, 1)
        bias = score_bias(encoder, weights.relative, attention_mask)
        for layer in weights.layers:
            states = run_layer(encoder, layer, states, bias, attend=attend)
        return states[:, :, 0].T

    return jax.jit(program)


def attentions(platform: str, dtype: DTypeLike) -> dict[str, Callable[..., Array]]:
    """The attentions that there are for a kind of device, by name."""
    named: dict[str, Callable[..., Array]] = {
        "two products": attention,
        "dot_product_attention, xla": partial(fused_attention, implementation="xla"),
    }
    if platform == "gpu" and dtype == jnp.bfloat16:
        named["dot_product_attention, cudnn"] = partial(fused_attention, implementation="cudnn")
    return named
