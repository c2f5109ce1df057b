"""What is added to attention scores: padding's mask, and a bias by distance where there is one."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.operations import Params

RELATIVE = "relative_attention_bias"  # its parameters: `embedding` [buckets, H]
FARTHEST = 128  # tokens: from there on every distance falls in the last bucket


def attention_bias(attention_mask: Int[Array, "B S"]) -> Float[Array, "B 1 1 S"]:
    """0 where a token is real, the lowest float elsewhere."""
    return jnp.where(attention_mask[:, None, None, :] > 0, 0.0, jnp.finfo(jnp.float32).min)


def score_bias(
    config: EncoderConfig, relative: Params, attention_mask: Int[Array, "B S"]
) -> Float[Array, "B #H #Q S"]:
    """All that is added to the scores of a batch [B, S]; one value a key where only it counts."""
    bias = attention_bias(attention_mask)
    if not config.family.relative_attention:
        return bias
    return bias + relative_bias(config, relative, attention_mask.shape[1])


def relative_bias(config: EncoderConfig, relative: Params, length: Any) -> Float[Array, "1 H S S"]:
    """The bias of each head by the distance from query to key, in buckets that widen.

    `length` may be a symbol, where a program is exported for any length.

    Source: Raffel et al., 1910.10683, as MPNet has it.
    """
    by_distance = jnp.asarray(relative["embedding"])[distance_buckets(config)]  # [2 * 128 + 1, H]
    places = jnp.arange(length)
    distance = jnp.clip(places[:, None] - places[None, :], -FARTHEST, FARTHEST)
    return by_distance[distance + FARTHEST].transpose(2, 0, 1)[None]


def distance_buckets(config: EncoderConfig) -> Int[np.ndarray, " distances"]:
    """The bucket of a query at i and a key at j for i - j from -`FARTHEST` to `FARTHEST`.

    Half of the buckets are for keys behind the query; half of each half have a distance of their
    own, the rest grow by powers up to `FARTHEST`.
    """
    half = config.relative_attention_num_buckets // 2
    exact = half // 2
    distance = np.arange(-FARTHEST, FARTHEST + 1)
    size = np.abs(distance)
    growth = np.log(np.maximum(size, 1) / exact) / np.log(FARTHEST / exact)
    # The logarithm of a power may fall a hair short of the whole number that it is.
    wide = np.minimum(exact + np.floor(growth * (half - exact) + 1e-6), half - 1)
    bucket = np.where(size < exact, size, wide).astype(np.int32)
    return np.where(distance < 0, half, 0).astype(np.int32) + bucket
