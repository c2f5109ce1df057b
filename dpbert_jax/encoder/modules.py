"""BERT in Flax Linen: embeddings, one layer, and the masked encoder that training differentiates.

Source: Devlin et al., 1810.04805; numerics follow Hugging Face's PyTorch BERT (exact erf GELU,
LayerNorm epsilon from the config). Shape letters: B batch, S sequence, D hidden, H heads,
K head size, F feed-forward, L layers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from dpbert_jax.config import EncoderConfig

DropoutKeys = Key[Array, " B"] | None

ACTIVATIONS = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


def dropout(x: Array, rate: float, keys: DropoutKeys, site: int) -> Array:
    """Dropout with one random key a row, so that a row's noise does not depend on its batch.

    That makes a step independent of how the global batch is spread over devices. `keys=None`
    means evaluation. One random byte decides an element (a quarter of the random words that
    32-bit draws need), so the rate is rounded to a multiple of 1/256 and the scale is exact for
    the rounded rate. `site` separates the dropouts that share the keys.
    """
    threshold = round(rate * 256)
    if keys is None or threshold == 0:
        return x
    size = x[0].size

    def row_bytes(key: Array) -> Array:
        words = jax.random.bits(jax.random.fold_in(key, site), (-(-size // 4),))
        return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size]

    keep = (jax.vmap(row_bytes)(keys) >= threshold).reshape(x.shape)
    return jnp.where(keep, x * (256 / (256 - threshold)), 0)


def fold_rows(keys: Any, data: int) -> Any:
    """Derives a new key for every row [B]; None, which means evaluation, stays None."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def attention_bias(attention_mask: Int[Array, "B S"]) -> Float[Array, "B 1 1 S"]:
    """What is added to attention scores: 0 where a token is real, the lowest float elsewhere."""
    return jnp.where(attention_mask[:, None, None, :] > 0, 0.0, jnp.finfo(jnp.float32).min)


def flat_product(
    inputs: Float[Array, "*axes D"], kernel: Float[Array, "D F"], _: Any, **options: Any
) -> Float[Array, "*axes F"]:
    """The product of a dense layer, [..., D] by [D, F], as one of a matrix of [rows, D].

    A kernel's gradient then sums over one axis, not two, which XLA's products on a CPU do faster.
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    return jnp.dot(flat, kernel, **options).reshape(*inputs.shape[:-1], kernel.shape[-1])


class _Config(nn.Module):
    """What every part shares: the hyper-parameters, the compute type, and how to build layers."""

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32

    def dense(self, features: int, name: str) -> nn.Dense:
        init = nn.initializers.normal(self.config.initializer_range)
        return nn.Dense(
            features, dtype=self.dtype, kernel_init=init, dot_general=flat_product, name=name
        )

    def layer_norm(self, name: str) -> nn.LayerNorm:
        # Statistics are always float32 (Linen promotes); the textbook variance, since E[x^2]-E[x]^2
        # loses the digits that 1e-5 parity needs.
        return nn.LayerNorm(
            epsilon=self.config.layer_norm_eps,
            dtype=self.dtype,
            use_fast_variance=False,
            name=name,
        )

    def embed(self, size: int, name: str) -> nn.Embed:
        init = nn.initializers.normal(self.config.initializer_range)
        return nn.Embed(
            size, self.config.hidden_size, dtype=self.dtype, embedding_init=init, name=name
        )


class Embeddings(_Config):
    """Sum of word, position and segment embeddings, normalised."""

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        token_type_ids: Int[Array, "B S"],
        dropout_keys: DropoutKeys = None,
        position_ids: Int[Array, "B S"] | None = None,  # default: 0, 1, 2, ...
    ) -> Float[Array, "B S D"]:
        config = self.config
        positions = (
            jnp.arange(input_ids.shape[1])[None, :] if position_ids is None else position_ids
        )
        hidden_states = (
            self.embed(config.vocab_size, "word_embeddings")(input_ids)
            + self.embed(config.max_position_embeddings, "position_embeddings")(positions)
            + self.embed(config.type_vocab_size, "token_type_embeddings")(token_type_ids)
        )
        hidden_states = self.layer_norm("layer_norm")(hidden_states)
        return dropout(hidden_states, config.hidden_dropout_prob, dropout_keys, site=0)


class Layer(_Config):
    """One transformer layer: post-norm self-attention and feed-forward."""

    @nn.compact
    def __call__(
        self,
        hidden_states: Float[Array, "B S D"],
        bias: Float[Array, "B 1 1 S"],
        dropout_keys: DropoutKeys = None,
    ) -> Float[Array, "B S D"]:
        config = self.config
        heads = (*hidden_states.shape[:2], config.num_attention_heads, config.head_size)
        query, key, value = (
            self.dense(config.hidden_size, name)(hidden_states).reshape(heads)  # [B, S, H, K]
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhk,bshk->bhqs", query, key) * config.head_size**-0.5
        # The softmax is float32 also under bfloat16 compute.
        probs = nn.softmax(scores.astype(jnp.float32) + bias).astype(self.dtype)  # [B, H, S, S]
        probs = dropout(probs, config.attention_probs_dropout_prob, dropout_keys, site=0)
        context = jnp.einsum("bhqs,bshk->bqhk", probs, value).reshape(hidden_states.shape)
        attended = self.dense(config.hidden_size, "attention_output")(context)
        attended = dropout(attended, config.hidden_dropout_prob, dropout_keys, site=1)
        hidden_states = self.layer_norm("attention_layer_norm")(hidden_states + attended)

        expanded = self.dense(config.intermediate_size, "intermediate")(hidden_states)
        expanded = ACTIVATIONS[config.hidden_act](expanded)  # [B, S, F]
        output = self.dense(config.hidden_size, "output")(expanded)
        output = dropout(output, config.hidden_dropout_prob, dropout_keys, site=2)
        return self.layer_norm("output_layer_norm")(hidden_states + output)


class Head(_Config):
    """Pooler and classifier: the first token's state, a tanh layer, and the logits."""

    @nn.compact
    def __call__(
        self, hidden_states: Float[Array, "B S D"], dropout_keys: DropoutKeys = None
    ) -> tuple[Float[Array, "B D"], Float[Array, "B C"]]:
        config = self.config
        pooled = jnp.tanh(self.dense(config.hidden_size, "pooler")(hidden_states[:, 0]))
        rate = config.classifier_dropout
        rate = config.hidden_dropout_prob if rate is None else rate
        dropped = dropout(pooled, rate, dropout_keys, site=0)
        logits = self.dense(config.num_labels, "classifier")(dropped)
        return pooled, logits.astype(jnp.float32)


def masked_layers(
    layers: Sequence[Layer],
    hidden_states: Float[Array, "B S D"],
    bias: Float[Array, "B 1 1 S"],
    layer_mask: Float[Array, "B N"],
    dropout_keys: Sequence[DropoutKeys],
) -> list[Float[Array, "B S D"]]:
    """Runs all N layers and mixes: h = m * layer(h) + (1 - m) * h.

    Differentiable in the mask, and the reference for every executor that skips. Returns the hidden
    states after each layer.
    """
    states = []
    for i, layer in enumerate(layers):
        gate = layer_mask[:, i, None, None].astype(hidden_states.dtype)
        output = layer(hidden_states, bias, dropout_keys[i])
        hidden_states = gate * output + (1 - gate) * hidden_states
        states.append(hidden_states)
    return states
