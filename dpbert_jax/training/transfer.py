"""What a stage distils from: texts, and what the dense model says of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.data.masking import mask_tokens


class TransferSet(NamedTuple):
    """The rows of an epoch, [N]."""

    split: TokenizedSplit
    teacher_logits: Float[np.ndarray, "N C"]
    labelled: Float[np.ndarray, " N"] | None = None  # 1: learns from its label too; None: all do


TransferSets = Callable[[int], TransferSet]  # by the epoch


def fixed(split: TokenizedSplit, teacher_logits: Float[np.ndarray, "N C"]) -> TransferSets:
    """The rows as they are, in every epoch."""
    rows = TransferSet(split, teacher_logits)
    return lambda epoch: rows


def partly_masked(
    split: TokenizedSplit,
    teacher_logits: Float[np.ndarray, "N C"],
    share: float,
    *,
    ask: Callable[[TokenizedSplit], Float[np.ndarray, "M C"]],
    tokenizer: Any,
    seed: int,
) -> TransferSets:
    """In each epoch another share of the rows has tokens masked, and learns from no label.

    Args:
        ask: what the dense model says of a split.
    """
    if not share:
        return fixed(split, teacher_logits)

    def of_epoch(epoch: int) -> TransferSet:
        draw = np.random.default_rng((seed, epoch))
        masked = draw.random(len(split)) < share
        copies = mask_tokens(split, masked, tokenizer, draw)
        logits = teacher_logits.copy()
        if masked.any():
            logits[masked] = ask(copies.take(np.flatnonzero(masked)))
        return TransferSet(copies, logits, (~masked).astype(np.float32))

    return of_epoch
