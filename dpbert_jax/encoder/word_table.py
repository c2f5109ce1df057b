"""The word table as factors of clusters of tokens, in int8.

After MCUBERT (2024): tokens are clustered by how frequent they are, and each cluster c of n tokens
has a low-rank table of its own, E_c ~ rows_c [n, r_c] times basis_c [r_c, E]. Its details are not
to be had: clusters, ranks and scales (a float32 one for each row of either factor) are this
project's own.

Tokens stand sorted by cluster: `place` [V] says where. A lookup reads and scales the rows of the
looked-up tokens only. Shape letters: V tokens, E width of the table.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dpbert_jax.config import EmbeddingCompression, EncoderConfig
from dpbert_jax.encoder.operations import Params

LEVELS = 127  # the largest int8 that is used: steps lie evenly around zero
PLACE = "place"


def cluster_name(number: int) -> str:
    """What a cluster's factors are called, in the parameters and in files."""
    return f"cluster_{number}"


def cluster_starts(compression: EmbeddingCompression) -> list[int]:
    """The place of each cluster's first token."""
    return np.cumsum([0, *compression.sizes[:-1]]).tolist()


def factor_shapes(config: EncoderConfig) -> Params:
    """Shapes and types of a compressed word table's parameters."""
    assert config.compression is not None
    clusters = zip(config.compression.sizes, config.compression.ranks, strict=True)
    shapes: Params = {PLACE: jax.ShapeDtypeStruct((config.vocab_size,), jnp.int32)}
    for number, (size, rank) in enumerate(clusters):
        shapes[cluster_name(number)] = {
            "rows": jax.ShapeDtypeStruct((size, rank), jnp.int8),
            "row_scale": jax.ShapeDtypeStruct((size,), jnp.float32),
            "basis": jax.ShapeDtypeStruct((rank, config.token_size), jnp.int8),
            "basis_scale": jax.ShapeDtypeStruct((rank,), jnp.float32),
        }
    return shapes


def table_bytes(config: EncoderConfig) -> int:
    """What a compressed word table takes, map and scales included."""
    leaves = jax.tree.leaves(factor_shapes(config))
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def look_up(
    compression: EmbeddingCompression, params: Params, input_ids: Int[Array, "B S"]
) -> Float[Array, "B S E"]:
    """The word embeddings of tokens, in float32: of each cluster the product of its factors.

    A token has a row in one cluster; in the others it reads some row and counts it as zero.
    """
    place = jnp.take(params[PLACE], input_ids, axis=0)
    states: Any = 0.0
    for number, start in enumerate(cluster_starts(compression)):
        factors, size = params[cluster_name(number)], compression.sizes[number]
        own = place - start
        inside = (own >= 0) & (own < size)
        own = jnp.clip(own, 0, size - 1)
        scale = jnp.where(inside, jnp.take(factors["row_scale"], own, axis=0), 0)
        rows = jnp.take(factors["rows"], own, axis=0).astype(jnp.float32) * scale[..., None]
        basis = factors["basis"].astype(jnp.float32) * factors["basis_scale"][:, None]
        states = states + rows @ basis
    return states


def round_rows(values: Float[np.ndarray, "N M"]) -> tuple[np.ndarray, np.ndarray]:
    """int8 [N, M], and the scale of each row, float32 [N]."""
    largest = np.maximum(np.abs(values).max(axis=1), np.finfo(np.float32).tiny)
    scale = (largest / LEVELS).astype(np.float32)
    return np.round(values / scale[:, None]).astype(np.int8), scale


def expanded(config: EncoderConfig, params: Params) -> tuple[EncoderConfig, Params]:
    """The same encoder with a plain word table of float32, [V, E]; one that has it as it is.

    `params` are those of a whole model.
    """
    if config.compression is None:
        return config, params
    words = params["embeddings"]["word_embeddings"]
    every = jnp.arange(config.vocab_size, dtype=jnp.int32)[None]
    table = look_up(config.compression, words, every)[0]
    embeddings = {**params["embeddings"], "word_embeddings": {"embedding": table}}
    plain = dataclasses.replace(config, compression=None)
    return plain, {**params, "embeddings": embeddings}
