"""What a stage's steps are made of: batches that follow from the seed and the step alone."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpbert_jax.data import Batch, TokenizedSplit, batches, epoch_schedule, num_batches
from dpbert_jax.training.transfer import TransferSets


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
        first, start = divmod(done, self.steps_per_epoch)
        for epoch in itertools.count(first):
            rows = self.transfer(epoch) if self.transfer else None
            for batch in batches(
                rows.split if rows else self.split,
                self.batch_size,
                self.max_seq_length,
                seed=self.seed,
                epoch=epoch,
                start=start if epoch == first else 0,
                pad_token_id=self.pad_token_id,
                length_buckets=self.length_buckets,
                own=self.own,
            ):
                if rows:
                    # Padding rows (index -1) get some row's; their weight is 0.
                    batch["teacher_logits"] = rows.teacher_logits[batch["indices"]]
                    if rows.labelled is not None:
                        batch["labelled"] = rows.labelled[batch["indices"]]
                yield epoch, batch

    def examples(self) -> Iterator[Batch]:
        """A batch of each length that the first epoch has."""
        schedule = epoch_schedule(
            self.split.lengths,
            self.batch_size,
            self.max_seq_length,
            seed=self.seed,
            length_buckets=self.length_buckets,
        )
        lengths = [length for length, _ in schedule]
        for length in dict.fromkeys(lengths):
            yield next(self.batches(lengths.index(length)))[1]

    def rows_of(self, batch: Batch) -> np.ndarray:
        """Where the batch's real rows stand in the training data."""
        return self.row_numbers[batch["indices"][batch["indices"] >= 0]]
