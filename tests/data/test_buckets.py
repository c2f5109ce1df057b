"""Length buckets by device: many on a CPU, at most three elsewhere, and those of least padding."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpbert_jax.data import default_buckets
from dpbert_jax.data.buckets import MOST, MULTIPLE, WORTH, least_padding, padding_share

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=40).map(np.array)


def slots(lengths, edges):
    return int(np.array(edges)[np.searchsorted(edges, lengths)].sum())


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 4))
def test_no_other_lengths_pad_less(lengths, count):
    chosen, padded = least_padding(lengths, 512, count)
    assert padded == slots(lengths, chosen) and len(chosen) <= count
    assert 0 <= chosen[-1] - lengths.max() < MULTIPLE
    shorter = range(MULTIPLE, int(chosen[-1]), MULTIPLE)
    for other in combinations(shorter, count - 1) if count < 3 else ():
        assert padded <= slots(lengths, [*other, chosen[-1]])


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 3), st.floats(1, 1e7))
def test_an_accelerator_gets_few_that_hold_every_row(lengths, more, epochs):
    longest = int(lengths.max()) + more - 1
    chosen = default_buckets("gpu", lengths, longest, epochs)
    assert chosen is not None and 1 <= len(chosen) <= MOST
    assert sorted(set(chosen)) == chosen and lengths.max() <= chosen[-1] <= longest + MULTIPLE
    assert all(edge % MULTIPLE == 0 or edge == longest for edge in chosen)


def test_a_further_length_has_to_pay_for_its_compilation():
    lengths = np.array([20] * 900 + [60] * 90 + [120] * 10)
    saved = 900 * (128 - 32) + 90 * (128 - 32)
    assert default_buckets("tpu", lengths, 128, 0.9 * WORTH / saved) == [128]
    assert default_buckets("tpu", lengths, 128, 1e6) == [32, 64, 128]


def test_a_cpu_keeps_the_lengths_that_it_had():
    assert default_buckets("cpu", np.array([7]), 128, 1e9) is None


@pytest.mark.parametrize("longest", [1, 24, 100])
def test_rows_that_are_cut_fit_as_they_are(longest):
    assert default_buckets("gpu", np.full(3, longest), longest) == [longest]
    assert default_buckets("gpu", np.zeros(0, int), longest) == [min(longest, MULTIPLE)]


def test_the_share_of_padding_is_that_of_the_batches():
    lengths = np.array([8, 16, 40])
    assert padding_share(lengths, 64, [16]) == pytest.approx(1 - 64 / (16 + 16 + 64))
    assert padding_share(lengths, 64, [16, 40]) == pytest.approx(1 - 64 / (16 + 16 + 40))
