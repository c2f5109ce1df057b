"""DPBERT: stem, planner, planned layers, head; its methods are the stages of an input's path."""

from collections.abc import Collection
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.adapters import Slots, init_adapters
from dpbert_jax.encoder.attention import score_bias
from dpbert_jax.encoder.embeddings import embed
from dpbert_jax.encoder.head import classify
from dpbert_jax.encoder.modules import (
    Embeddings,
    Head,
    Layer,
    affine,
    masked_layers,
    relative_attention,
)
from dpbert_jax.encoder.operations import DropoutKeys, Params, fold_rows
from dpbert_jax.policies.adapted import adapter_shapes, adapter_slots
from dpbert_jax.policies.planner import gate_logits, planner_products


class Planner(nn.Module):
    """The parameters of `planner.judge`."""

    config: DPBertConfig

    @nn.compact
    def __call__(self) -> Params:
        products = planner_products(self.config)
        return {name: affine(*product, name)() for name, product in products.items()}


class DPBert(nn.Module):
    """An encoder for sequence classification or regression whose layers a planner chooses.

    Parameters are one subtree a part: `embeddings`, `layer_0` .. `layer_{L-1}`, `head`, and where
    the config has them `planner`, `adapters` (plain arrays, which methods are given as they are)
    and `relative_attention_bias`. Layers are never stacked: a skipped layer's weights are then
    never touched. With `gradient_checkpointing` the backward pass computes
    each layer's inside anew from its input: less memory, more time.
    """

    config: DPBertConfig
    dtype: DTypeLike = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        encoder = self.config.encoder
        self.embeddings = Embeddings(encoder)
        make: Any = nn.remat(Layer) if self.gradient_checkpointing else Layer
        self.layers = [
            make(encoder, self.dtype, name=f"layer_{i}") for i in range(encoder.num_hidden_layers)
        ]
        self.head = Head(encoder)
        self.relative_attention_bias = relative_attention(encoder)
        if self.config.planner:
            self.planner = Planner(self.config)

    def score_bias(self, attention_mask: Int[Array, "B S"]) -> Float[Array, "B #H #S S"]:
        """What is added to the attention scores of every layer."""
        relative = self.relative_attention_bias
        return score_bias(self.config.encoder, relative() if relative else {}, attention_mask)

    def stem(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"],
        token_type_ids: Int[Array, "B S"],
        dropout_keys: DropoutKeys = None,
    ) -> Float[Array, "B S D"]:
        """Embeddings and the layers that always run."""
        keys = fold_rows(dropout_keys, 0)
        weights, encoder = self.embeddings(), self.config.encoder
        states = embed(encoder, weights, input_ids, token_type_ids, self.dtype, dropout_keys=keys)
        bias = self.score_bias(attention_mask)
        for i, layer in enumerate(self.layers[: self.config.stem_layers]):
            states = layer(states, bias, fold_rows(dropout_keys, 1 + i))
        return states

    def look(
        self,
        stem_states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
    ) -> Float[Array, "B P"]:
        """Gate logits of the planned layers; of shape [B, 0] where there is no planner."""
        planner = self.planner() if self.config.planner else {}
        return gate_logits(self.config, planner, stem_states, attention_mask)

    def encode(
        self,
        stem_states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        gates: Float[Array, "B P"],
        dropout_keys: DropoutKeys = None,
        adapters: Params | None = None,
    ) -> list[Float[Array, "B S D"]]:
        """The planned layers, all computed and mixed by the gates; the states after each.

        With `adapters`, those of each plan's depth are added.
        """
        first = self.config.stem_layers
        keys = [fold_rows(dropout_keys, 1 + i) for i in range(first, len(self.layers))]
        bias = self.score_bias(attention_mask)
        planned = self.layers[first:]
        if adapters is None:
            return masked_layers(planned, stem_states, bias, gates, keys)
        own = [adapters[f"layer_{i}"] for i in range(first, len(self.layers))]
        slots = adapter_slots(self.config, gates)
        return masked_layers(planned, stem_states, bias, gates, keys, own, slots)

    def pool(
        self,
        hidden_states: Float[Array, "B S D"],
        dropout_keys: DropoutKeys = None,
        adapters: Params | None = None,
        slots: Slots | None = None,
    ) -> tuple[Float[Array, "B D"], Float[Array, "B C"]]:
        """Pooled output and logits."""
        keys = fold_rows(dropout_keys, 1 + len(self.layers))
        return classify(
            self.config.encoder,
            self.head(),
            hidden_states[:, 0],
            self.dtype,
            keys,
            adapters=adapters["head"] if adapters else None,
            slots=slots,
        )

    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"],
        token_type_ids: Int[Array, "B S"],
        gates: Float[Array, "B P"],
    ) -> Float[Array, "B C"]:
        """Logits under a given plan, in evaluation mode; also what initialisation traces."""
        states = self.stem(input_ids, attention_mask, token_type_ids)
        if self.is_initializing():
            self.look(states, attention_mask)
        states = [states, *self.encode(states, attention_mask, gates)]
        return self.pool(states[-1])[1]


@partial(jax.jit, static_argnums=(0, 1))
def _init(config: DPBertConfig, parts: tuple[str, ...] | None, key: Key[Array, ""]) -> Params:
    # One jitted call: initialising op by op compiles hundreds of tiny programs. What is not
    # returned is not compiled.
    ids = jnp.ones((1, 4), jnp.int32)
    gates = jnp.ones((1, config.num_gates))
    variables: Any = DPBert(config).init(key, ids, ids, jnp.zeros_like(ids), gates)
    params = variables["params"]
    if config.adapters:
        params["adapters"] = init_adapters(adapter_shapes(config), jax.random.fold_in(key, 1))
    return params if parts is None else {name: params[name] for name in parts}


def init_params(config: DPBertConfig, seed: int, parts: Collection[str] | None = None) -> Params:
    """Random parameters for the config, in float32; compiles once for each config.

    `parts` are those to make (`head`, `planner`, `layer_0`, ...); default: all.
    """
    chosen = None if parts is None else tuple(sorted(parts))
    return _init(config, chosen, jax.random.key(seed))
