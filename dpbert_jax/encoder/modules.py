"""The encoder in Flax Linen, as training differentiates it: its parameters, and the layer.

Sources: Devlin et al., 1810.04805, and the families' own papers; numerics follow Hugging Face's
PyTorch. Shape letters: B batch, S sequence, D hidden, H heads, K head size, F feed-forward,
L layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.adapters import Slots, low_rank, own_values
from dpbert_jax.encoder.embeddings import WORDS, table_sizes
from dpbert_jax.encoder.operations import (
    ACTIVATIONS,
    DropoutKeys,
    Params,
    dropout,
    flat_product,
    layer_norm,
)
from dpbert_jax.encoder.word_table import factor_shapes


class Declared(nn.Module):
    """A part whose arithmetic is a plain function: the module only declares its parameters."""

    shapes: dict[str, tuple[int, ...]]  # of kernel and bias, scale and bias, or embedding
    stddev: float = 0.02  # of kernels and embeddings

    @nn.compact
    def __call__(self) -> Params:
        random = nn.initializers.normal(self.stddev)
        drawn = {"kernel": random, "embedding": random, "scale": nn.initializers.ones}
        return {
            name: self.param(name, drawn.get(name, nn.initializers.zeros), shape)
            for name, shape in self.shapes.items()
        }


def affine(inputs: int, outputs: int, stddev: float, name: str) -> Declared:
    """Kernel and bias of a dense layer."""
    return Declared({"kernel": (inputs, outputs), "bias": (outputs,)}, stddev, name=name)


def relative_attention(config: EncoderConfig, name: str | None = None) -> Declared | None:
    """The parameters of `attention.relative_bias`; None where the family has no such bias."""
    if not config.family.relative_attention:
        return None
    table = {"embedding": (config.relative_attention_num_buckets, config.num_attention_heads)}
    return Declared(table, config.initializer_range, name=name)


class WordTable(nn.Module):
    """The parameters of `word_table.look_up`: zeros, until they are made of a trained table."""

    shapes: Mapping[str, Any]

    @nn.compact
    def __call__(self) -> Params:
        return {
            name: self.param(name, lambda _, leaf=leaf: jnp.zeros(leaf.shape, leaf.dtype))
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else WordTable(leaf, name=name)()
            for name, leaf in self.shapes.items()
        }


class Embeddings(nn.Module):
    """The parameters of `embeddings.embed`."""

    config: EncoderConfig

    @nn.compact
    def __call__(self) -> Params:
        config = self.config
        width, stddev = config.token_size, config.initializer_range
        params = {
            name: Declared({"embedding": (size, width)}, stddev, name=name)()
            for name, size in table_sizes(config).items()
        }
        if config.compression:
            params[WORDS] = WordTable(factor_shapes(config), name=WORDS)()
        params["layer_norm"] = Declared({"scale": (width,), "bias": (width,)}, name="layer_norm")()
        if config.projects:
            params["projection"] = affine(width, config.hidden_size, stddev, "projection")()
        return params


class Head(nn.Module):
    """The parameters of `head.classify`."""

    config: EncoderConfig

    @nn.compact
    def __call__(self) -> Params:
        width, stddev = self.config.hidden_size, self.config.initializer_range
        return {
            "pooler": affine(width, width, stddev, "pooler")(),
            "classifier": affine(width, self.config.num_labels, stddev, "classifier")(),
        }


class Layer(nn.Module):
    """One transformer layer: post-norm self-attention and feed-forward."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    def dense(self, features: int, name: str) -> nn.Dense:
        init = nn.initializers.normal(self.config.initializer_range)
        return nn.Dense(
            features, dtype=self.dtype, kernel_init=init, dot_general=flat_product, name=name
        )

    @nn.compact
    def __call__(
        self,
        hidden_states: Float[Array, "B S D"],
        bias: Float[Array, "B #H #S S"],
        dropout_keys: DropoutKeys = None,
        adapters: Params | None = None,
        slots: Slots | None = None,
    ) -> Float[Array, "B S D"]:
        """With `adapters` (`adapters.layer_shapes`), those of each row's slot are added."""
        config = self.config

        def product(features: int, name: str, inputs: Array) -> Array:
            output = self.dense(features, name)(inputs)
            if slots is None or adapters is None or name not in adapters:
                return output
            return output + low_rank(adapters[name], inputs, slots)

        def normalise(name: str, inputs: Array) -> Array:
            width = (config.hidden_size,)
            params = Declared({"scale": width, "bias": width}, name=name)()
            if slots is not None and adapters is not None:
                params = {
                    key: value[None] + own_values(adapters[name][key], slots)
                    for key, value in params.items()
                }
            return layer_norm(params, inputs, config.layer_norm_eps, self.dtype)

        heads = (*hidden_states.shape[:2], config.num_attention_heads, config.head_size)
        query, key, value = (
            product(config.hidden_size, name, hidden_states).reshape(heads)  # [B, S, H, K]
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhk,bshk->bhqs", query, key) * config.head_size**-0.5
        # The softmax is float32 also under bfloat16 compute.
        probs = nn.softmax(scores.astype(jnp.float32) + bias).astype(self.dtype)  # [B, H, S, S]
        probs = dropout(probs, config.attention_probs_dropout_prob, dropout_keys, site=0)
        context = jnp.einsum("bhqs,bshk->bqhk", probs, value).reshape(hidden_states.shape)
        attended = product(config.hidden_size, "attention_output", context)
        attended = dropout(attended, config.hidden_dropout_prob, dropout_keys, site=1)
        hidden_states = normalise("attention_layer_norm", hidden_states + attended)

        expanded = product(config.intermediate_size, "intermediate", hidden_states)
        expanded = ACTIVATIONS[config.hidden_act](expanded)  # [B, S, F]
        output = product(config.hidden_size, "output", expanded)
        output = dropout(output, config.hidden_dropout_prob, dropout_keys, site=2)
        return normalise("output_layer_norm", hidden_states + output)


def masked_layers(
    layers: Sequence[Layer],
    hidden_states: Float[Array, "B S D"],
    bias: Float[Array, "B #H #S S"],
    layer_mask: Float[Array, "B N"],
    dropout_keys: Sequence[DropoutKeys],
    adapters: Sequence[Params] | None = None,
    slots: Slots | None = None,
) -> list[Float[Array, "B S D"]]:
    """Runs all N layers and mixes: h = m * layer(h) + (1 - m) * h.

    Differentiable in the mask, and the reference for every executor that skips. Returns the hidden
    states after each layer.
    """
    states = []
    for i, layer in enumerate(layers):
        gate = layer_mask[:, i, None, None].astype(hidden_states.dtype)
        own = (adapters[i], slots) if adapters else ()
        output = layer(hidden_states, bias, dropout_keys[i], *own)
        hidden_states = gate * output + (1 - gate) * hidden_states
        states.append(hidden_states)
    return states
