import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpbert_jax.data.batches import (
    LENGTH_BUCKETS,
    batches,
    bucket_length,
    chunks,
    epoch_schedule,
    num_batches,
)
from dpbert_jax.data.tokenize import TokenizedSplit

MAX = 100
lengths_of_rows = st.lists(st.integers(2, MAX), max_size=60).map(lambda rows: np.asarray(rows, int))
batch_sizes = st.integers(1, 9)
seeds = st.none() | st.integers(0, 5)


def split_of(lengths: np.ndarray, labels: bool = True) -> TokenizedSplit:
    """A split whose every token says which row it belongs to."""
    return TokenizedSplit(
        token_ids=np.repeat(np.arange(len(lengths), dtype=np.int32) + 1000, lengths),
        type_ids=np.ones(int(lengths.sum()), np.int8),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=np.arange(len(lengths), dtype=np.int32) + 7 if labels else None,
    )


def test_bucket_length():
    assert [bucket_length(n, 128) for n in (1, 8, 9, 24, 100, 128)] == [8, 8, 12, 24, 128, 128]
    assert bucket_length(97, 100) == 100
    assert bucket_length(9, 10) == 10
    assert bucket_length(600, 1024) == 1024
    with pytest.raises(ValueError, match="max_seq_length=128"):
        bucket_length(129, 128)
    assert [bucket_length(n, 128, (32, 64)) for n in (1, 33, 65)] == [32, 64, 128]
    assert bucket_length(1, 128, ()) == 128


@given(lengths_of_rows, batch_sizes, seeds, st.integers(0, 3))
def test_every_row_once_and_at_most_one_short_batch(
    lengths: np.ndarray, batch_size: int, seed: int | None, epoch: int
):
    schedule = epoch_schedule(lengths, batch_size, MAX, seed=seed, epoch=epoch)
    assert len(schedule) == num_batches(len(lengths), batch_size)
    rows = [row for _, members in schedule for row in members]
    assert sorted(rows) == list(range(len(lengths)))
    assert sum(len(members) < batch_size for _, members in schedule) <= 1
    for length, members in schedule:
        assert length in (*LENGTH_BUCKETS, MAX)
        # Wide enough, and as wide as some row of the whole split needs.
        assert lengths[members].max() <= length <= bucket_length(int(lengths.max()), MAX)


@given(lengths_of_rows, batch_sizes, seeds)
def test_batches_have_the_lengths_that_were_asked_for(
    lengths: np.ndarray, batch_size: int, seed: int | None
):
    made = batches(
        split_of(lengths), batch_size, MAX, pad_token_id=0, seed=seed, length_buckets=(20, 50)
    )
    assert {batch["input_ids"].shape[1] for batch in made} <= {20, 50, MAX}


@given(lengths_of_rows, batch_sizes, seeds)
def test_the_schedule_is_a_function_of_its_arguments(
    lengths: np.ndarray, batch_size: int, seed: int | None
):
    one = epoch_schedule(lengths, batch_size, MAX, seed=seed, epoch=2)
    two = epoch_schedule(lengths.copy(), batch_size, MAX, seed=seed, epoch=2)
    assert [(length, rows.tolist()) for length, rows in one] == [
        (length, rows.tolist()) for length, rows in two
    ]


@given(lengths_of_rows, batch_sizes)
def test_fewer_than_a_batch_of_rows_moves_up_from_each_bucket(lengths: np.ndarray, batch_size: int):
    needed = np.asarray([bucket_length(int(length), MAX) for length in lengths])
    moved = {int(bucket): 0 for bucket in needed}
    for length, rows in epoch_schedule(lengths, batch_size, MAX, seed=1):
        for bucket in needed[rows]:
            moved[int(bucket)] += int(bucket) < length
    assert all(count < batch_size for count in moved.values())


def test_seeds_and_epochs_differ():
    lengths = np.full(50, 20)
    orders = {
        tuple(np.concatenate([rows for _, rows in epoch_schedule(lengths, 4, MAX, **which)]))
        for which in ({"seed": 0, "epoch": 0}, {"seed": 0, "epoch": 1}, {"seed": 1, "epoch": 0})
    }
    assert len(orders) == 3


def test_evaluation_goes_from_short_to_long_in_order():
    lengths = np.asarray([40, 10, 12, 30, 11])
    schedule = epoch_schedule(lengths, 2, MAX)
    assert [(length, rows.tolist()) for length, rows in schedule] == [
        (12, [1, 2]),
        (32, [4, 3]),
        (48, [0]),
    ]


def test_training_does_not_always_go_from_short_to_long():
    lengths = np.repeat([10, 20, 30, 60, 90], 10)
    widths = [length for length, _ in epoch_schedule(lengths, 2, MAX, seed=0)]
    assert widths != sorted(widths)


@given(lengths_of_rows, batch_sizes, seeds, st.booleans())
def test_batches_hold_their_rows_and_padding_weighs_nothing(
    lengths: np.ndarray, batch_size: int, seed: int | None, labels: bool
):
    split = split_of(lengths, labels)
    seen: list[int] = []
    for batch in batches(split, batch_size, MAX, seed=seed, pad_token_id=3):
        assert {array.shape[0] for array in batch.values()} == {batch_size}
        assert ("labels" in batch) == labels
        assert set(batch["attention_mask"][:, 0]) == {1}
        for row in range(batch_size):
            index, mask = int(batch["indices"][row]), batch["attention_mask"][row]
            if index < 0:
                assert batch["weights"][row] == 0
                assert mask.sum() == 1
                assert set(batch["input_ids"][row]) == {3}
                assert not batch["token_type_ids"][row].any()
                assert not labels or batch["labels"][row] == 0
                continue
            seen.append(index)
            length = lengths[index]
            assert batch["weights"][row] == 1
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            assert set(batch["input_ids"][row, :length]) == {1000 + index}
            assert set(batch["input_ids"][row, length:]) <= {3}
            assert batch["token_type_ids"][row].tolist() == mask.tolist()
            assert not labels or batch["labels"][row] == index + 7
    assert sorted(seen) == list(range(len(lengths)))


@given(lengths_of_rows, batch_sizes, seeds, st.integers(0, 80))
def test_start_skips_batches(lengths: np.ndarray, batch_size: int, seed: int | None, start: int):
    split = split_of(lengths)
    same = {"seed": seed, "epoch": 1, "pad_token_id": 0}
    whole = list(batches(split, batch_size, MAX, **same))
    rest = list(batches(split, batch_size, MAX, start=start, **same))
    assert len(rest) == max(0, len(whole) - start)
    for wanted, found in zip(whole[start:], rest, strict=True):
        for key in wanted:
            np.testing.assert_array_equal(wanted[key], found[key])


@given(lengths_of_rows, st.integers(1, 40))
def test_chunks_keep_the_order_and_have_one_shape(lengths: np.ndarray, num_rows: int):
    found = list(chunks(split_of(lengths), num_rows, MAX, pad_token_id=3))
    rows = np.concatenate([batch["indices"] for batch in found]) if found else np.zeros(0)
    assert rows[rows >= 0].tolist() == list(range(len(lengths)))
    assert len({batch["input_ids"].shape for batch in found}) <= 1
    assert all(len(batch["weights"]) <= num_rows for batch in found)
    for batch in found:
        filled = (batch["attention_mask"] == 1) & (batch["weights"][:, None] > 0)
        assert set(batch["input_ids"][~filled]) <= {3}


def test_a_chunk_is_bounded(monkeypatch):
    module = importlib.import_module("dpbert_jax.data.batches")  # the package has it as a function
    monkeypatch.setattr(module, "MAX_CHUNK_SLOTS", 64)
    found = chunks(split_of(np.full(9, 16)), 512, MAX, pad_token_id=0)
    assert [batch["input_ids"].shape for batch in found] == [(4, 16)] * 3


def test_types_of_a_batch():
    split = split_of(np.asarray([5, 20]))
    batch = next(batches(split, 4, 32, pad_token_id=0))
    assert batch["input_ids"].shape == (4, 20)
    types = {key: array.dtype for key, array in batch.items()}
    assert types.pop("weights") == np.float32
    assert set(types.values()) == {np.dtype(np.int32)}


def test_what_is_refused():
    split = split_of(np.asarray([5, 20]))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        epoch_schedule(split.lengths, 0, MAX)
    with pytest.raises(ValueError, match="start must not be negative"):
        next(batches(split, 4, MAX, pad_token_id=0, start=-1))
    with pytest.raises(ValueError, match="above max_seq_length=16"):
        next(batches(split, 4, 16, pad_token_id=0))
