"""What all parts of an encoder are made of, as plain functions of parameters.

Numerics follow Hugging Face's PyTorch: exact erf GELU, LayerNorm's textbook variance in float32.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

Params = dict[str, Any]
DropoutKeys = Key[Array, " B"] | None

ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
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


def fold_rows(keys: Any, data: int | Int[Array, ""]) -> Any:
    """Derives a new key for every row [B]; None, which means evaluation, stays None."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def flat_product(
    inputs: Float[Array, "*axes D"], kernel: Float[Array, "D F"], _: Any = None, **options: Any
) -> Float[Array, "*axes F"]:
    """The product of a dense layer, [..., D] by [D, F], as one of a matrix of [rows, D].

    A kernel's gradient then sums over one axis, not two, which XLA's products on a CPU do faster.
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    return jnp.dot(flat, kernel, **options).reshape(*inputs.shape[:-1], kernel.shape[-1])


def dense(
    params: Params, inputs: Float[Array, "*axes D"], dtype: DTypeLike
) -> Float[Array, "*axes F"]:
    """A product with the kernel [D, F], and the bias, in the compute type."""
    product = flat_product(inputs.astype(dtype), jnp.asarray(params["kernel"], dtype))
    bias = jnp.asarray(params["bias"], dtype)
    return product + bias.reshape((1,) * (product.ndim - 1) + (-1,))


def layer_norm(
    params: Params, inputs: Float[Array, "*axes D"], epsilon: float, dtype: DTypeLike
) -> Float[Array, "*axes D"]:
    """Over the last axis; statistics in float32, as E[x^2] - E[x]^2 would lose digits.

    Scale and bias may be each row's own, [B, D].
    """
    # Step by step as Linen's LayerNorm, which the layers have: gradients are the same to the bit.
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    mean = wide.mean(axis=-1)
    variance = jax.lax.square(wide - jnp.expand_dims(mean, -1)).mean(axis=-1)
    own_scale, shift = (jnp.asarray(params[name]) for name in ("scale", "bias"))
    rows = own_scale.shape[0] if own_scale.ndim > 1 else 1
    leading = (rows, *(1,) * (inputs.ndim - 2), -1)
    scale = jax.lax.rsqrt(jnp.expand_dims(variance, -1) + epsilon)
    scale = scale * own_scale.reshape(leading)
    centred = inputs - jnp.expand_dims(mean, -1)
    return (centred * scale + shift.reshape(leading)).astype(dtype)
