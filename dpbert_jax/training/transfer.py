"""What a stage distils from: texts, and what the dense model says of them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dpbert_jax.data import Batch, TokenizedSplit
from dpbert_jax.data.masking import mask_tokens

ASKED_BATCHES = 32  # of whose rows the dense model is asked at once: so long a signal may wait
MASKS = 1  # a stream of draws beside that of the order of rows

# What the dense model says of a split, [N, C]; all processes ask for the same rows at once.
Ask = Callable[[TokenizedSplit], Float[np.ndarray, "N C"]]


class TransferSet:
    """The rows of an epoch, N of them, and what the dense model says of each."""

    def __init__(
        self,
        split: TokenizedSplit,
        teacher_logits: Float[np.ndarray, "N C"],
        masked: Bool[np.ndarray, " N"] | None = None,
        ask: Ask | None = None,
    ) -> None:
        self.split = split
        self._logits, self._masked, self._ask = teacher_logits, masked, ask

    def prepare(self, rows: Iterable[Int[np.ndarray, " B"]]) -> None:
        """Asks for what is not known yet of the rows of the next batches."""
        if self._masked is None or self._ask is None:
            return
        coming = np.concatenate(list(rows))
        coming = coming[self._masked[coming]]
        if len(coming):
            self._logits[coming] = self._ask(self.split.take(coming))

    def add_to(self, batch: Batch) -> None:
        """Gives each row `teacher_logits`, and `labelled`, 0 where its label is left out."""
        # Padding rows (index -1) get some row's; their weight is 0.
        batch["teacher_logits"] = self._logits[batch["indices"]]
        if self._masked is not None:
            batch["labelled"] = (~self._masked[batch["indices"]]).astype(np.float32)


TransferSets = Callable[[int], TransferSet]  # by the epoch


def as_they_are(split: TokenizedSplit, teacher_logits: Float[np.ndarray, "N C"]) -> TransferSets:
    """The same rows in every epoch."""
    rows = TransferSet(split, teacher_logits)
    return lambda epoch: rows


def partly_masked(
    split: TokenizedSplit,
    teacher_logits: Float[np.ndarray, "N C"],
    share: float,
    *,
    ask: Ask,
    tokenizer: Any,
    seed: int,
) -> TransferSets:
    """Each row with a chance of `share` with tokens masked, drawn anew for each epoch.

    Of a masked row the label is left out: it may no longer hold.
    """

    def of_epoch(epoch: int) -> TransferSet:
        draw = np.random.default_rng((seed, epoch, MASKS))
        masked = draw.random(len(split)) < share
        copies = mask_tokens(split, masked, tokenizer, draw)
        return TransferSet(copies, teacher_logits.copy(), masked, ask)

    return of_epoch
