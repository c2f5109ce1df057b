"""Adapters by depth: what a plan of few layers changes in the layers that it runs, and in the head.

One set of weights serves plans of every depth, and gives up points for it; a few parameters of each
depth's own win them back. For each depth below that of all layers there are low-rank additions to
the products (LoRA: Hu et al., 2106.09685) and additions to LayerNorm's scale and shift; for the
head, to its products and classes. All begin as zero. A plan of all layers has none.

Which depth a row's plan has is said by its slot, int [B]: 0 .. N - 1 for the N depths, and N for
all layers. Shape letters: N depths, R rank, E outputs; others as in `modules`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.operations import Params, flat_product

Slots = Int[Array, " B"]


class AdapterSize(NamedTuple):
    depths: int
    rank: int  # 0: no low-rank additions, LayerNorms and head only


def product_sizes(config: EncoderConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a layer's products."""
    hidden, wide = config.hidden_size, config.intermediate_size
    square = dict.fromkeys(("query", "key", "value", "attention_output"), (hidden, hidden))
    return {**square, "intermediate": (hidden, wide), "output": (wide, hidden)}


def layer_shapes(config: EncoderConfig, size: AdapterSize) -> dict[str, dict[str, Any]]:
    """Shapes of a layer's adapters."""
    depths, rank = size
    products = product_sizes(config) if rank else {}
    norm = (depths, config.hidden_size)
    return {
        **{name: _factors(size, *about) for name, about in products.items()},
        **{
            name: {"scale": norm, "bias": norm}
            for name in ("attention_layer_norm", "output_layer_norm")
        },
    }


def head_shapes(config: EncoderConfig, size: AdapterSize) -> dict[str, dict[str, Any]]:
    """Shapes of the head's adapters."""
    depths, rank = size
    hidden, classes = config.hidden_size, config.num_labels
    return {
        "pooler": {"bias": (depths, hidden), **(_factors(size, hidden, hidden) if rank else {})},
        "classifier": {"kernel": (depths, hidden, classes), "bias": (depths, classes)},
    }


def _factors(size: AdapterSize, inputs: int, outputs: int) -> dict[str, tuple[int, int, int]]:
    return {"down": (size.depths, inputs, size.rank), "up": (size.depths, size.rank, outputs)}


def adapter_flops(config: EncoderConfig, rank: int, tokens: Any) -> Any:
    """Floating-point operations of one layer's low-rank additions for one row."""
    return sum(2 * tokens * rank * sum(about) for about in product_sizes(config).values())


def init_adapters(shapes: Params, key: Key[Array, ""]) -> Params:
    """Parameters of these shapes that add nothing yet: all zero but the first factors."""
    leaves, tree = jax.tree.flatten_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))

    def leaf(number: int, name: str, shape: tuple[int, ...]) -> Array:
        if name != "down":
            return jnp.zeros(shape)
        return jax.random.normal(jax.random.fold_in(key, number), shape) * shape[1] ** -0.5

    made = [leaf(i, path[-1].key, shape) for i, (path, shape) in enumerate(leaves)]
    return jax.tree.unflatten(tree, made)


def low_rank(params: Params, inputs: Array, slots: Slots) -> Array:
    """What a product's adapters add: [B, ..., D] -> [B, ..., E].

    All depths' factors side by side, with a row's mask between the two products.
    """
    down, up = (jnp.asarray(params[name], inputs.dtype) for name in ("down", "up"))
    depths, width, rank = down.shape
    inner = flat_product(inputs, down.transpose(1, 0, 2).reshape(width, depths * rank))
    own = jnp.repeat(jax.nn.one_hot(slots, depths, dtype=inputs.dtype), rank, axis=1)
    own = own.reshape(own.shape[0], *(1,) * (inputs.ndim - 2), -1)
    return flat_product(inner * own, up.reshape(depths * rank, -1))


def own_values(table: Float[Array, "N *E"], slots: Slots) -> Float[Array, "B *E"]:
    """The row of each slot; zeros for plans of all layers."""
    chosen = jax.nn.one_hot(slots, table.shape[0], dtype=table.dtype)
    flat = chosen @ table.reshape(table.shape[0], -1)
    return flat.reshape(-1, *table.shape[1:])
