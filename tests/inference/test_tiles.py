"""Tiles: every real token once, rows whole, next to no empty slots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpbert_jax.config import TINY, EncoderConfig
from dpbert_jax.inference.tiles import fill_tiles, make_tiles, split_tiles, tile_width

rows_of = st.lists(st.integers(1, 32), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows_of, st.data())
def test_every_token_of_the_rows_once_and_rows_whole(lengths, data):
    mask = (np.arange(32) < np.array(lengths)[:, None]).astype(np.int32)
    every = st.integers(0, len(lengths) - 1)
    rows = np.unique(data.draw(st.lists(every, min_size=1)))
    tiles = make_tiles(mask, rows, 40)
    real = tiles.rows >= 0
    wanted = [row * 32 + t for row in rows for t in range(lengths[row])]
    assert sorted(tiles.tokens[real].tolist()) == wanted
    assert (tiles.tokens[~real] == mask.size).all()
    np.testing.assert_array_equal(tiles.tokens[real] // 32, tiles.rows[real])
    for row in rows:
        assert len(np.unique(np.nonzero(tiles.rows == row)[0])) == 1  # in one tile
        within = tiles.tokens[tiles.rows == row]
        np.testing.assert_array_equal(np.diff(within), 1)  # in order


def test_tokens_inside_a_row_that_are_masked_stay_out():
    mask = np.array([[1, 0, 1, 1], [1, 1, 0, 0]], np.int32)
    tiles = make_tiles(mask, np.arange(2), 8)
    assert sorted(tiles.tokens[tiles.rows >= 0].tolist()) == [0, 2, 3, 4, 5]


def test_hundreds_of_unlike_rows_leave_few_slots_empty():
    lengths = np.random.default_rng(0).integers(4, 56, 400)
    tiles = fill_tiles(lengths, 64)[2]
    assert lengths.sum() / (64 * tiles) > 0.95


@given(st.integers(0, 200), st.sampled_from([1, 2, 4, 8, 16]))
def test_pieces_add_up_and_are_of_few_sizes(count, largest):
    pieces = split_tiles(count, largest)
    assert sum(pieces) == count
    assert set(pieces) <= {2**i for i in range(largest.bit_length())}
    assert all(pieces.count(size) == 1 for size in set(pieces) - {largest})


@pytest.mark.parametrize(("lengths", "width"), [([16] * 8, 16), ([30] * 4 + [2] * 4, 32)])
def test_width_fits_the_rows(lengths, width):
    config = EncoderConfig(hidden_size=384, intermediate_size=1536)
    assert tile_width(config, np.array(lengths), max(lengths)) == width


def test_width_holds_a_row_longer_than_any_preset():
    assert tile_width(TINY, np.array([200, 3]), 200) == 208
