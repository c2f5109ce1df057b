"""Which lengths batches are padded to on an accelerator: few, since each is a compilation.

On a CPU they are many and always the same (`batches.LENGTH_BUCKETS`). On a GPU or TPU a training
step of one length compiles for longer than a small task trains, so there a further length has to
pay for itself in padding that is not computed.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

MOST = 3
# Coarse, so that tasks share compiled programs; a product of 32 rows by such a length has the
# factors that a GPU's tiles want.
MULTIPLE = 32
# Tokens of padding over a whole run that another length has to save. A guess, not a measurement:
# three stages' compilations of 20 to 34 s, at 200,000 tokens a second.
WORTH = 2**24


def default_buckets(
    platform: str, lengths: np.ndarray, max_seq_length: int, epochs: float = 1.0
) -> list[int] | None:
    """Length buckets for a kind of device and rows of these lengths; None: those of `batches`.

    On accelerators one to `MOST`, of least padding, the last as long as the longest row.

    Args:
        epochs: how often the rows are gone through.

    >>> default_buckets("cpu", np.array([9, 40]), 128) is None
    True
    >>> default_buckets("gpu", np.array([9, 40]), 128)
    [64]
    """
    if platform == "cpu":
        return None
    best: list[int] = []
    least = np.inf
    for count in range(1, MOST + 1):
        edges, slots = least_padding(lengths, max_seq_length, count)
        price = epochs * slots + count * WORTH
        if price < least:
            best, least = edges, price
    return best


def least_padding(lengths: np.ndarray, max_seq_length: int, count: int) -> tuple[list[int], int]:
    """At most `count` lengths, multiples of `MULTIPLE`, that pad the rows least; and their slots.

    Slots are tokens and padding of all rows, each padded to its own length's bucket. Every choice
    is tried.
    """
    longest = int(np.max(lengths, initial=1))
    steps = np.arange(MULTIPLE, longest + MULTIPLE, MULTIPLE)
    ends = np.minimum(steps[: -(-longest // MULTIPLE)], max_seq_length)
    rows = np.searchsorted(np.sort(lengths), ends, side="right")  # that an end holds
    best, least = [int(ends[-1])], int(ends[-1]) * len(lengths)
    for chosen in combinations(range(len(ends) - 1), min(count, len(ends)) - 1):
        at = [*chosen, len(ends) - 1]
        slots = int(np.diff(rows[at], prepend=0) @ ends[at])
        if slots < least:
            best, least = ends[at].tolist(), slots
    return best, least


def padding_share(lengths: np.ndarray, max_seq_length: int, buckets: Sequence[int]) -> float:
    """The share of the slots that is padding, each row padded to its bucket; 0 to 1."""
    edges = [edge for edge in buckets if edge < max_seq_length] + [max_seq_length]
    slots = np.asarray(edges)[np.searchsorted(edges, lengths)].sum()
    return float(1 - lengths.sum() / slots)
