"""Clusters, ranks and factors of a word table under a number of bytes.

Tokens are sorted by how frequent they are on some text and cut into clusters; each cluster's table
becomes a product of low rank. What is minimised is the squared error of the table, each token
weighted by its frequency. Shape letters: V tokens, E width, n tokens of a cluster, r its rank.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dpbert_jax.config import EmbeddingCompression, EncoderConfig
from dpbert_jax.encoder.operations import Params
from dpbert_jax.encoder.word_table import PLACE, cluster_name, round_rows, table_bytes
from dpbert_jax.errors import UserError

CLUSTERS = (1, 2, 3, 4, 6, 8)  # numbers of clusters that are tried; one is a truncated SVD


class Factors(NamedTuple):
    """A word table as products, not yet rounded to int8."""

    compression: EmbeddingCompression
    place: Int[np.ndarray, " V"]  # of each token, sorted by cluster
    rows: tuple[np.ndarray, ...]  # [n, r] of each cluster
    bases: tuple[np.ndarray, ...]  # [r, E], rows orthonormal
    error: float  # share of the table's squared norm that is lost, by frequency

    def leaves(self) -> Params:
        """Both factors of each cluster, by its name."""
        pairs = zip(self.rows, self.bases, strict=True)
        return {cluster_name(n): {"rows": u, "basis": v} for n, (u, v) in enumerate(pairs)}


class Cluster(NamedTuple):
    """Tokens that share a basis, before its rank is known."""

    tokens: Int[np.ndarray, " n"]
    directions: Float[np.ndarray, "E E"]  # those that hold most of the weighted table come first
    energy: Float[np.ndarray, " E"]  # of the weighted table along each, descending


def token_weights(token_ids: Int[np.ndarray, " T"], vocab_size: int) -> Float[np.ndarray, " V"]:
    """How often each token occurs, plus one: what the text lacks, another may hold."""
    return np.bincount(token_ids, minlength=vocab_size).astype(np.float64) + 1


def factorise(
    config: EncoderConfig,
    table: Float[np.ndarray, "V E"],
    weights: Float[np.ndarray, " V"],
    budget: int,
    clusters: int | None = None,
) -> Factors:
    """The factors of least weighted error within a budget of bytes.

    Args:
        weights: of tokens, above 0.
        clusters: how many; None: the best of `CLUSTERS`.

    Raises:
        UserError: the budget does not pay for a rank of one in each cluster, or there are more
            clusters than tokens.
    """
    if clusters is not None and clusters > len(weights):
        raise UserError(f"--clusters is {clusters}, but there are {len(weights)} tokens.")
    table = np.asarray(table, np.float64)
    tried = []
    for number in CLUSTERS if clusters is None else (clusters,):
        parts = [
            _cluster(table, weights, tokens) for tokens in clusters_by_frequency(weights, number)
        ]
        sizes = tuple(len(part.tokens) for part in parts)
        ranks = allot_ranks(config, sizes, [part.energy for part in parts], budget)
        if ranks is not None:
            lost = sum(part.energy[rank:].sum() for part, rank in zip(parts, ranks, strict=True))
            tried.append((lost, EmbeddingCompression(sizes, ranks), parts))
    if not tried:
        least = table_bytes(_with_clusters(config, (config.vocab_size,), (1,)))
        raise UserError(
            f"{budget} bytes are too few for the word embeddings: a map, scales and a rank of one "
            f"take {least}{f', and more in {clusters} clusters' if clusters else ''}."
        )
    lost, compression, parts = min(tried, key=lambda each: each[0])
    place = np.empty(len(table), np.int32)
    place[np.concatenate([part.tokens for part in parts])] = np.arange(len(table))
    bases = [
        part.directions[:, :rank].T for part, rank in zip(parts, compression.ranks, strict=True)
    ]
    rows = [table[part.tokens] @ basis.T for part, basis in zip(parts, bases, strict=True)]
    return Factors(
        compression,
        place,
        tuple(each.astype(np.float32) for each in rows),
        tuple(each.astype(np.float32) for each in bases),
        float(lost / (weights @ np.square(table).sum(axis=1))),
    )


def clusters_by_frequency(weights: Float[np.ndarray, " V"], number: int) -> list[np.ndarray]:
    """Tokens of each cluster, the most frequent first.

    Cut where the sum of the weights' roots reaches equal parts: the rule of Dalenius and Hodges
    (1959) for strata. A cluster has one token at least.
    """
    order = np.argsort(-weights, kind="stable")
    reached = np.cumsum(np.sqrt(weights[order]))
    wanted = reached[-1] * np.arange(1, number) / number
    # A token may hold more than a part: the clusters after it then have one token each.
    numbers = np.arange(1, number)
    cuts = np.maximum.accumulate(np.searchsorted(reached, wanted) + 1 - numbers) + numbers
    return np.split(order, np.minimum(cuts, len(order) - number + numbers))


def _cluster(
    table: Float[np.ndarray, "V E"], weights: Float[np.ndarray, " V"], tokens: np.ndarray
) -> Cluster:
    """A weighted SVD: its right vectors are those of the small matrix E' W E."""
    own = table[tokens]
    energy, directions = np.linalg.eigh(own.T @ (weights[tokens, None] * own))
    return Cluster(tokens, directions[:, ::-1], np.maximum(energy[::-1], 0))


def allot_ranks(
    config: EncoderConfig, sizes: tuple[int, ...], energies: list[np.ndarray], budget: int
) -> tuple[int, ...] | None:
    """The rank of each cluster; None where the budget does not pay for one in each.

    Each further rank goes to where it saves most error a byte. What a rank saves falls within a
    cluster and its price stays, so no other ranks of as many bytes save more.
    """
    ranks = [1] * len(sizes)
    left = budget - table_bytes(_with_clusters(config, sizes, tuple(ranks)))
    if left < 0:
        return None
    doubled = table_bytes(_with_clusters(config, sizes, (2,) * len(sizes)))
    once = table_bytes(_with_clusters(config, sizes, (1,) * len(sizes)))
    per_basis = (doubled - once - sum(sizes)) // len(sizes)
    prices = np.array(sizes) + per_basis
    highest = [min(size, config.token_size) for size in sizes]
    while True:
        payable = [
            (energies[i][ranks[i]] / prices[i], i)
            for i in range(len(sizes))
            if ranks[i] < highest[i] and prices[i] <= left
        ]
        if not payable:
            return tuple(ranks)
        _, chosen = max(payable)
        ranks[chosen] += 1
        left -= int(prices[chosen])


def _with_clusters(
    config: EncoderConfig, sizes: tuple[int, ...], ranks: tuple[int, ...]
) -> EncoderConfig:
    return dataclasses.replace(config, compression=EmbeddingCompression(sizes, ranks))


def quantise(factors: Factors) -> Params:
    """The parameters of `encoder.word_table.look_up`: each row in int8, with a scale of its own."""
    params: Params = {PLACE: np.int32(factors.place)}
    for name, pair in factors.leaves().items():
        rows, row_scale = round_rows(pair["rows"])
        basis, basis_scale = round_rows(pair["basis"])
        params[name] = {
            "rows": rows,
            "row_scale": row_scale,
            "basis": basis,
            "basis_scale": basis_scale,
        }
    return params
