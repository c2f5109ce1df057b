"""Length-bucketed batches, from a schedule that every process derives alike.

A batch has one of a few shapes, so that a compiled step is compiled a few times only, and is about
as long as its rows, so that little of it is padding. The schedule is a pure function of the row
lengths, the batch size, the seed and the epoch: a run that is resumed, or spread over several
processes, sees the very same batches.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from dpbert_jax.data.tokenize import TokenizedSplit

LENGTH_BUCKETS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MAX_CHUNK_SLOTS = 2**16  # tokens and padding of a chunk: 200 MB of hidden states at hidden size 768

# What a model reads of a batch; families without token types pass over the last.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# INPUTS: int32 [B, S]
# labels: int32 [B] class ids, float32 [B] scores or float32 [B, C] of 0 and 1; absent from an
#     unlabelled split
# weights: float32 [B], 1 for a row of the split and 0 for padding
# indices: int32 [B], row number in the split, -1 for padding
Batch = dict[str, np.ndarray]


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches in one epoch: ceil(num_rows / batch_size)."""
    return -(-num_rows // batch_size)


def bucket_length(
    length: int, max_seq_length: int, length_buckets: Sequence[int] | None = None
) -> int:
    """The smallest bucket that holds `length` tokens, capped at `max_seq_length`.

    `length_buckets` are the buckets, ascending; default: `LENGTH_BUCKETS`.

    Raises ValueError where `length` itself is above `max_seq_length`.

    >>> bucket_length(17, 128), bucket_length(100, 110)
    (20, 110)
    >>> bucket_length(17, 128, (32, 64))
    32
    """
    return int(_bucket_lengths(np.asarray([length]), max_seq_length, length_buckets)[0])


def epoch_schedule(
    lengths: np.ndarray,
    batch_size: int,
    max_seq_length: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    length_buckets: Sequence[int] | None = None,
) -> list[tuple[int, np.ndarray]]:
    """One epoch as (S, row indices [B or fewer]) pairs, each row once, at most one pair short.

    Rows are grouped by the bucket of their length. Those left over in a bucket, too few for a
    batch, move up to the next longer bucket in use, so that there are exactly
    `num_batches(N, batch_size)` batches.

    With a `seed` (an integer >= 0), rows and batches are shuffled, anew in every epoch. Without
    one, as in evaluation, batches go from short to long; the rows of a bucket keep their order.

    Raises ValueError for a length above `max_seq_length` or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    rows = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    row_buckets = _bucket_lengths(np.asarray(lengths), max_seq_length, length_buckets)[rows]

    schedule: list[tuple[int, np.ndarray]] = []
    waiting = rows[:0]
    bucket = 0
    for bucket in map(int, np.unique(row_buckets)):
        # Waiting rows go first: no row is lifted further than it has to be.
        waiting = np.concatenate([waiting, rows[row_buckets == bucket]])
        full = len(waiting) // batch_size * batch_size
        schedule += [(bucket, chunk) for chunk in waiting[:full].reshape(-1, batch_size)]
        waiting = waiting[full:]
    if len(waiting):
        schedule.append((bucket, waiting))
    if rng is None:
        return schedule
    return [schedule[position] for position in rng.permutation(len(schedule))]


def batches(
    split: TokenizedSplit,
    batch_size: int,
    max_seq_length: int,
    *,
    pad_token_id: int,
    seed: int | None = None,
    epoch: int = 0,
    start: int = 0,
    length_buckets: Sequence[int] | None = None,
    own: np.ndarray | None = None,
) -> Iterator[Batch]:
    """The batches of `epoch_schedule`, each with exactly `batch_size` rows.

    `start` is the number of batches to skip, which are then not built: a run that stopped after k
    steps of an epoch goes on with `start=k`. The short batch, if any, is filled up with padding
    rows of weight 0. `own` are the positions in a batch to build, where other processes build the
    others; default: all. `pad_token_id` is the model's: position ids of some families skip it.
    """
    if start < 0:
        raise ValueError(f"start must not be negative, got {start}")
    schedule = epoch_schedule(
        split.lengths,
        batch_size,
        max_seq_length,
        seed=seed,
        epoch=epoch,
        length_buckets=length_buckets,
    )
    for length, rows in schedule[start:]:
        indices = _filled(rows, batch_size)
        yield _build(split, length, indices if own is None else indices[own], pad_token_id)


def chunks(
    split: TokenizedSplit, num_rows: int, max_seq_length: int, *, pad_token_id: int
) -> Iterator[Batch]:
    """The rows in the split's own order, `num_rows` at a time, all chunks of one shape.

    For what packs the rows itself: unlike lengths fill its gaps better than sorted ones. Chunks are
    as wide as the longest row, and hold fewer rows where they would exceed `MAX_CHUNK_SLOTS`.
    """
    if num_rows < 1:
        raise ValueError(f"num_rows must be at least 1, got {num_rows}")
    if not len(split):
        return
    length = bucket_length(int(split.lengths.max()), max_seq_length)
    num_rows = max(min(num_rows, len(split), MAX_CHUNK_SLOTS // length), 1)
    for start in range(0, len(split), num_rows):
        rows = np.arange(start, min(start + num_rows, len(split)))
        yield _build(split, length, _filled(rows, num_rows), pad_token_id)


def _bucket_lengths(
    lengths: np.ndarray, max_seq_length: int, length_buckets: Sequence[int] | None = None
) -> np.ndarray:
    """Bucket of each row; int64 [N]."""
    if len(lengths) and lengths.max() > max_seq_length:
        raise ValueError(f"a row of {lengths.max()} tokens is above {max_seq_length=}")
    buckets = LENGTH_BUCKETS if length_buckets is None else length_buckets
    edges = [edge for edge in buckets if edge < max_seq_length] + [max_seq_length]
    return np.asarray(edges)[np.searchsorted(edges, lengths)]


def _filled(rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Row numbers with -1 for padding behind them; int32 [B]."""
    indices = np.full(batch_size, -1, np.int32)
    indices[: len(rows)] = rows
    return indices


def _build(split: TokenizedSplit, length: int, indices: np.ndarray, pad_token_id: int) -> Batch:
    """The batch of the split's rows `indices`, `length` tokens wide; -1 stands for padding."""
    real = indices >= 0
    begin = split.offsets[indices]
    width = np.where(real, split.offsets[indices + 1] - begin, 0)
    filled = np.arange(length) < width[:, None]
    where = (begin[:, None] + np.arange(length))[filled]
    input_ids = np.full(filled.shape, pad_token_id, np.int32)
    token_type_ids = np.zeros(filled.shape, np.int32)
    input_ids[filled] = split.token_ids[where]
    token_type_ids[filled] = split.type_ids[where]
    attention_mask = filled.astype(np.int32)
    # A padding row attends to one pad token: a softmax over no position at all would be NaN.
    attention_mask[~real, 0] = 1

    batch: Batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "weights": real.astype(np.float32),
        "indices": indices,
    }
    if split.labels is not None:
        batch["labels"] = split.labels[indices]
        batch["labels"][~real] = 0
    return batch
