"""What a task is: its text columns, its labels, its metrics; and the nine tasks of GLUE.

Names, columns and the order of the classes are those of `nyu-mll/glue` on the Hugging Face hub, so
that class ids agree with every checkpoint that was trained by `run_glue`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dpbert_jax.problem import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType

REGRESSION_METRICS = ("pearson", "spearmanr")


@dataclass(frozen=True)
class TaskSpec:
    """The description of a task, without any of its rows."""

    name: str  # a GLUE name, a built-in one, or "custom" for a user's own files
    text_columns: tuple[str, ...]  # one or two
    labels: tuple[str, ...] | None  # class names in id order; None: regression
    metrics: tuple[str, ...]  # names of `evaluation.metrics`
    validation_splits: tuple[str, ...] = ("validation",)
    multi_label: bool = False  # a row has any number of the classes, not one
    positive: int = 1  # the class that F1 is of
    label_column: str = "label"

    @property
    def problem_type(self) -> ProblemType:
        if self.labels is None:
            return REGRESSION
        return MULTI_LABEL if self.multi_label else SINGLE_LABEL

    @property
    def is_regression(self) -> bool:
        return self.labels is None

    @property
    def f1_class(self) -> str | None:
        """The class that F1 is of, where it is of one."""
        return self.labels[self.positive] if self.labels and "f1" in self.metrics else None

    @property
    def num_labels(self) -> int:
        """Width of the output layer: the number of classes, or 1 for regression."""
        return 1 if self.labels is None else len(self.labels)


@dataclass(frozen=True)
class Examples:
    """The rows of one split, in file order: N texts or pairs of texts, and their labels."""

    text_a: list[str]
    text_b: list[str] | None  # None: single-sentence task
    # int32 [N] class ids, float32 [N] scores, float32 [N, C] of 0 and 1; None: unlabelled
    labels: np.ndarray | None

    def __post_init__(self) -> None:
        columns = [self.text_b, self.labels]
        if any(column is not None and len(column) != len(self) for column in columns):
            raise ValueError("text_a, text_b and labels must have one entry per row")

    def __len__(self) -> int:
        return len(self.text_a)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """The rows named by `indices`, in that order."""
        rows = [int(index) for index in indices]
        return Examples(
            text_a=[self.text_a[row] for row in rows],
            text_b=None if self.text_b is None else [self.text_b[row] for row in rows],
            labels=None if self.labels is None else self.labels[np.asarray(rows, dtype=np.int64)],
        )

    def head(self, n: int | None) -> "Examples":
        """The first `n` rows, or all of them where `n` is None or more than there are."""
        return self if n is None else self.take(range(min(n, len(self))))


@dataclass(frozen=True)
class TaskData:
    """A task with its rows. A split that the source does not have is absent from `splits`."""

    spec: TaskSpec
    splits: dict[str, Examples]  # "train", those named in spec.validation_splits, "test..."
    # What was wrong with each row that was left out, by split; a split without one is absent.
    skipped: dict[str, list[str]] = field(default_factory=dict)


def custom_spec(
    text_columns: tuple[str, ...],
    labels: tuple[str, ...] | None,
    multi_label: bool = False,
    label_column: str = "label",
) -> TaskSpec:
    """The task that a user's own files define."""
    if labels is None:
        metrics = REGRESSION_METRICS
    elif multi_label:
        metrics = ("f1_micro", "f1_macro")
    elif len(labels) == 2:
        metrics = ("accuracy", "f1", "f1_macro")
    else:
        metrics = ("accuracy", "f1_macro")
    return TaskSpec(
        "custom",
        text_columns,
        labels,
        metrics,
        multi_label=multi_label,
        label_column=label_column,
    )


def canonical_name(name: str) -> str:
    """The lower-case hub name behind any spelling: `SST-2`, `sst-2` and `sst2` are all `sst2`."""
    return re.sub("[-_]", "", name.lower())


_NOT_ENTAILMENT_LAST = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")

GLUE_TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        TaskSpec(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            ("validation_matched", "validation_mismatched"),
        ),
        TaskSpec("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        TaskSpec("qnli", ("question", "sentence"), _NOT_ENTAILMENT_LAST, ("accuracy",)),
        TaskSpec(
            "qqp",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
        ),
        TaskSpec("rte", _SENTENCES, _NOT_ENTAILMENT_LAST, ("accuracy",)),
        TaskSpec("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        TaskSpec("stsb", _SENTENCES, None, REGRESSION_METRICS),
        # WNLI alone counts the other way round.
        TaskSpec("wnli", _SENTENCES, ("not_entailment", "entailment"), ("accuracy",)),
    )
}
