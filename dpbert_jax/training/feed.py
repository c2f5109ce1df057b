"""What a stage's steps are made of: batches that follow from the seed and the step alone."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpbert_jax.data import Batch, TokenizedSplit, batches, epoch_schedule, num_batches
from dpbert_jax.training.transfer import ASKED_BATCHES, TransferSets


@dataclass(frozen=True)
class Feed:
    """The rows of a stage, epoch after epoch."""

    split: TokenizedSplit
    row_numbers: np.ndarray  # where its rows stand in the training data; [N]
    batch_size: int  # rows of the global batch
    max_seq_length: int
    pad_token_id: int
    seed: int
    length_buckets: Sequence[int] | None = None  # default: those of `batches`
    transfer: TransferSets | None = None  # of rows as long as the split's; None: no teacher
    own: np.ndarray | None = None  # positions in a batch that this process builds; None: all

    @property
    def steps_per_epoch(self) -> int:
        return num_batches(len(self.split), self.batch_size)

    def batches(self, done: int) -> Iterator[tuple[int, Batch]]:
        """The batches after the first `done`, each with the number of its epoch; without end."""
        first, begun = divmod(done, self.steps_per_epoch)
        for epoch in itertools.count(first):
            start = begun if epoch == first else 0
            rows = self.transfer(epoch) if self.transfer else None
            coming = self._schedule(epoch)[start:]
            made = batches(
                rows.split if rows else self.split,
                self.batch_size,
                self.max_seq_length,
                seed=self.seed,
                epoch=epoch,
                start=start,
                pad_token_id=self.pad_token_id,
                length_buckets=self.length_buckets,
                own=self.own,
            )
            for number, batch in enumerate(made):
                if rows:
                    if number % ASKED_BATCHES == 0:
                        rows.prepare(each for _, each in coming[number : number + ASKED_BATCHES])
                    rows.add_to(batch)
                yield epoch, batch

    def examples(self) -> Iterator[Batch]:
        """A batch of each length that the first epoch has."""
        lengths = [length for length, _ in self._schedule(0)]
        for length in dict.fromkeys(lengths):
            yield next(self.batches(lengths.index(length)))[1]

    def _schedule(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """The length and the rows, of all processes, of each batch of an epoch."""
        return epoch_schedule(
            self.split.lengths,
            self.batch_size,
            self.max_seq_length,
            seed=self.seed,
            epoch=epoch,
            length_buckets=self.length_buckets,
        )

    def rows_of(self, batch: Batch) -> np.ndarray:
        """Where the batch's real rows stand in the training data."""
        return self.row_numbers[batch["indices"][batch["indices"] >= 0]]
