"""GLUE as it is published: a folder of tab-separated files for each task.

The files know no quotes: a field ends at a tab, a row at a line end. CoLA has a header in its test
file only, MRPC begins with a byte-order mark, SST-2 leaves blanks at the end of its sentences. The
published QQP has a few broken rows and empty questions: the first are bad rows, the second are
kept, as the hub does it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened

import numpy as np

from dpbert_jax.data.bad_rows import BadRow, BadRows
from dpbert_jax.data.files import Row, checked_header, tsv_records
from dpbert_jax.data.tasks import GLUE_TASKS, Examples, TaskData, TaskSpec, canonical_name
from dpbert_jax.errors import UserError

_SCORE = re.compile(r"[+-]?[0-9]{1,9}(\.[0-9]+)?")  # STS-B's, of 0 to 5


@dataclass(frozen=True)
class _Layout:
    """Where a task's published files keep what; columns by the name in the header."""

    text: tuple[str, ...]
    label: str = "label"
    names_labels: bool = False  # whether labels are class names; else they are class ids
    header: tuple[str, ...] | None = None  # of train and dev, where the files have none


_LAYOUTS: dict[str, _Layout] = {
    "cola": _Layout(("sentence",), header=("source", "label", "original_judgement", "sentence")),
    "mnli": _Layout(("sentence1", "sentence2"), label="gold_label", names_labels=True),
    "mrpc": _Layout(("#1 String", "#2 String"), label="Quality"),
    "qnli": _Layout(("question", "sentence"), names_labels=True),
    "qqp": _Layout(("question1", "question2"), label="is_duplicate"),
    "rte": _Layout(("sentence1", "sentence2"), names_labels=True),
    "sst2": _Layout(("sentence",)),
    "stsb": _Layout(("sentence1", "sentence2"), label="score"),
    "wnli": _Layout(("sentence1", "sentence2")),
}


def task_of_folder(folder: Path) -> str | None:
    """The GLUE task that a folder's name tells (`SST-2` -> "sst2"), or None."""
    name = canonical_name(folder.resolve().name)
    return name if name in GLUE_TASKS else None


def load_glue_folder(folder: Path, task_name: str, on_bad_row: str = "error") -> TaskData:
    """Read every split that the folder has; validation must be there, train and test may be absent.

    Raises UserError for a folder without the task's files; BadRow, naming file and line, for a row
    with too few or too many columns, an unknown label, or bytes that are no text, unless
    `on_bad_row` is "skip".
    """
    spec = GLUE_TASKS[task_name]
    splits: dict[str, Examples] = {}
    skipped: dict[str, list[str]] = {}
    for split, file_name in _file_names(spec).items():
        path = folder / file_name
        if path.is_file():
            bad_rows = BadRows(on_bad_row)
            splits[split] = _read_split(path, spec, not split.startswith("test"), bad_rows)
            if bad_rows.messages:
                skipped[split] = bad_rows.messages
        elif split in spec.validation_splits:
            raise UserError(f"{folder}: there is no {file_name}, which {task_name} needs.")
    return TaskData(spec, splits, skipped)


def _file_names(spec: TaskSpec) -> dict[str, str]:
    """File of each split; MNLI has dev_matched.tsv and so on, and calls them by the hub's names."""
    names = {"train": "train.tsv"}
    for split in spec.validation_splits:
        names[split] = split.replace("validation", "dev") + ".tsv"
    for split in spec.validation_splits:
        names[split.replace("validation", "test")] = split.replace("validation", "test") + ".tsv"
    return names


def _read_split(path: Path, spec: TaskSpec, labelled: bool, bad_rows: BadRows) -> Examples:
    layout = _LAYOUTS[spec.name]
    texts: list[list[str]] = []
    labels: list[int | float] = []
    for place, row in _read_rows(path, layout.header if labelled else None):
        with bad_rows:
            if isinstance(row, BadRow):
                raise row
            fields = [_field(place, row, column) for column in layout.text]
            if labelled:
                labels.append(_label(place, _field(place, row, layout.label), spec, layout))
            texts.append(fields)
    bad_rows.require_rows(path, len(texts))
    dtype = np.float32 if spec.is_regression else np.int32
    return Examples(
        text_a=[row[0] for row in texts],
        text_b=[row[1] for row in texts] if len(layout.text) == 2 else None,
        labels=np.asarray(labels, dtype) if labelled else None,
    )


def _read_rows(path: Path, header: tuple[str, ...] | None) -> Iterator[Row]:
    """Rows by column, each with its place; the first line is the header where none is given."""
    for place, record in tsv_records(path):
        if isinstance(record, BadRow):
            if header is None:
                raise record
            yield place, record
            continue
        fields = tuple(field.strip() for field in record)
        if header is None:
            header = tuple(checked_header(place, list(fields)))
        elif len(fields) != len(header):
            yield (
                place,
                BadRow(
                    f"{place}: {len(fields)} columns instead of {len(header)}, "
                    f"{shortened(list(header))}; mend or remove the row."
                ),
            )
        else:
            yield place, dict(zip(header, fields, strict=True))


def _field(place: str, row: dict[str, str], column: str) -> str:
    # Not a BadRow: the header is every row's.
    if column not in row:
        raise UserError(f"{place}: there is no column '{column}' among {shortened(list(row))}.")
    return row[column]


def _label(place: str, text: str, spec: TaskSpec, layout: _Layout) -> int | float:
    """The class id, or the score of a regression task."""
    if spec.labels is None:
        if not _SCORE.fullmatch(text):
            raise BadRow(f"{place}: score {text!r:.60} is not a number.")
        return float(text)
    known = list(spec.labels) if layout.names_labels else [str(i) for i in range(spec.num_labels)]
    if text not in known:
        raise BadRow(f"{place}: label {text!r:.60} is not one of {known}.")
    return known.index(text)
