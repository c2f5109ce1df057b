"""What a run trains on, and how many rows at once.

All of it follows from the run's flags and data, so that what comes after a run (baselines, sweep)
finds the very rows that the run held out.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from dpbert_jax.data import TaskData, TokenizedSplit, tokenize
from dpbert_jax.errors import UserError


class Rows(NamedTuple):
    """The training rows, and those held out from all stages: the planner is refitted on them."""

    kept: TokenizedSplit
    kept_numbers: np.ndarray  # where the kept rows stand among all
    held_out: TokenizedSplit


def held_out_rows(rows: int) -> int:
    """How many of the training rows are held out: a tenth, but neither a handful nor thousands."""
    return max(min(32, rows // 2), min(2000, rows // 10))


def training_rows(
    task: TaskData,
    tokenizer: Any,
    *,
    max_seq_length: int,
    max_train_samples: int | None,
    seed: int,
) -> Rows:
    """Tokenises the training split and holds rows out, drawn by the seed."""
    examples = task.splits["train"].head(max_train_samples)
    if len(examples) < 2:
        raise UserError(f"There are {len(examples)} training rows; at least 2 are needed.")
    every = tokenize(examples, tokenizer, max_seq_length)
    count = held_out_rows(len(every))
    order = np.random.default_rng(seed).permutation(len(every))
    kept, held_out = np.sort(order[count:]), np.sort(order[:count])
    return Rows(every.take(kept), kept, every.take(held_out))


def global_batch_size(per_device: int, accumulation: int) -> int:
    """Rows that a step learns from: on all devices of all processes, in all micro-batches."""
    return per_device * jax.device_count() * accumulation
