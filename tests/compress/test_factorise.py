"""Clusters, ranks and factors of a word table: within the bytes, and at the least error."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.compress.factorise import (
    allot_ranks,
    clusters_by_frequency,
    factorise,
    quantise,
    token_weights,
)
from dpbert_jax.config import EmbeddingCompression, EncoderConfig
from dpbert_jax.encoder.word_table import look_up, table_bytes
from dpbert_jax.errors import UserError

ENCODER = EncoderConfig(vocab_size=400, hidden_size=24, num_attention_heads=2)
BYTES = 400 * 24 * 4


@pytest.fixture(scope="module")
def table():
    """Frequent tokens in one space, rare ones in another, and some of everything."""
    random = np.random.default_rng(0)
    spaces = random.standard_normal((2, 6, 24))
    rows = random.standard_normal((400, 6))
    made = np.concatenate([rows[:100] @ spaces[0], rows[100:] @ spaces[1]])
    return np.float32(made + 0.3 * random.standard_normal((400, 24)))


@pytest.fixture(scope="module")
def weights():
    return 1e4 / np.arange(1, 401.0)


def with_clusters(sizes, ranks):
    return dataclasses.replace(ENCODER, compression=EmbeddingCompression(sizes, ranks))


def product(factors):
    """The whole table that the int8 factors stand for."""
    ids = jnp.arange(400, dtype=jnp.int32)[None]
    return np.asarray(look_up(factors.compression, quantise(factors), ids))[0]


def weighted_error(table, other, weights):
    return (weights * np.square(table - other).sum(axis=1)).sum() / (
        weights * np.square(table).sum(axis=1)
    ).sum()


@pytest.mark.parametrize("clusters", [None, 1, 3])
def test_bytes_never_exceed_the_budget_and_more_of_them_lose_less(clusters, table, weights):
    lost = []
    for budget in range(BYTES // 6, BYTES // 3, 777):
        factors = factorise(ENCODER, table, weights, budget, clusters)
        taken = table_bytes(with_clusters(*dataclasses.astuple(factors.compression)))
        assert taken <= budget
        if max(factors.compression.ranks) < 24:
            assert taken > budget - 2 * 400 - 100
        lost.append(factors.error)
    assert lost == sorted(lost, reverse=True) and lost[0] > lost[-1]


def test_the_error_is_the_products_and_below_a_truncated_svds(table, weights):
    budget = BYTES // 6
    factors = factorise(ENCODER, table, weights, budget)
    assert len(factors.compression.sizes) > 1
    measured = weighted_error(table, product(factors), weights)
    np.testing.assert_allclose(measured, factors.error, rtol=0.05)
    one = factorise(ENCODER, table, weights, budget, 1)
    # An SVD without weights, at the rank that the same bytes pay for.
    (rank,) = one.compression.ranks
    u, s, v = np.linalg.svd(table, full_matrices=False)
    truncated = weighted_error(table, (u[:, :rank] * s[:rank]) @ v[:rank], weights)
    assert factors.error < one.error <= truncated


def test_no_other_ranks_within_the_bytes_lose_less_but_for_the_last_piece():
    sizes, random = (5, 9), np.random.default_rng(1)
    small = dataclasses.replace(ENCODER, vocab_size=14, hidden_size=6)
    energies = [-np.sort(-random.random(6) * scale) for scale in (3, 1)]

    def bytes_of(ranks):
        compression = EmbeddingCompression(sizes, ranks)
        return table_bytes(dataclasses.replace(small, compression=compression))

    def lost(ranks):
        return sum(energy[rank:].sum() for energy, rank in zip(energies, ranks, strict=True))

    for budget in range(200, 420, 7):
        ranks = allot_ranks(small, sizes, energies, budget)
        if ranks is None:
            assert bytes_of((1, 1)) > budget
            continue
        # What is left may be less than the next rank's price.
        others = (
            lost(other)
            for other in itertools.product(range(1, 6), range(1, 7))
            if bytes_of(other) <= budget - (max(sizes) + 6 + 4)
        )
        assert lost(ranks) <= min(others, default=np.inf) + 1e-12


@pytest.mark.parametrize("number", [1, 2, 5, 40])
def test_clusters_hold_every_token_once_the_frequent_first(number, weights):
    shuffled = np.random.default_rng(0).permutation(weights)
    clusters = clusters_by_frequency(shuffled, number)
    assert len(clusters) == number and min(map(len, clusters)) > 0
    order = np.concatenate(clusters)
    assert sorted(order) == list(range(400))
    assert (np.diff(shuffled[order]) <= 0).all()


def test_one_token_may_outweigh_all_others():
    heavy = np.ones(400)
    for weight in (30**2, 150**2, 1e12):  # of the roots' sum: the middle, most, all
        heavy[7] = weight
        clusters = clusters_by_frequency(heavy, 4)
        assert clusters[0][0] == 7 and min(map(len, clusters)) > 0


def test_what_the_text_lacks_counts_a_little():
    weights = token_weights(np.array([3, 3, 1]), 5)
    assert weights.tolist() == [1, 2, 1, 3, 1]


def test_too_few_bytes_are_refused(table, weights):
    with pytest.raises(UserError, match=r"3000 bytes are too few .* take 3628"):
        factorise(ENCODER, table, weights, 3000)
