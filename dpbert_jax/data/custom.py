"""The task that a user's own files define.

Which columns are read is said in `columns`, what the labels mean in `labels`. What was chosen
stands in the log.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal

import numpy as np

from dpbert_jax.data.bad_rows import BadRow, BadRows
from dpbert_jax.data.classes import Classes, unmatched
from dpbert_jax.data.columns import SAMPLE_ROWS, Columns, choose_columns, clean
from dpbert_jax.data.files import Row, read_rows
from dpbert_jax.data.labels import (
    Labelled,
    check_characters,
    checked_label,
    classes_of_file,
    encoded,
    names_in,
)
from dpbert_jax.data.tasks import Examples, TaskData, custom_spec
from dpbert_jax.errors import UserError
from dpbert_jax.problem import MULTI_LABEL, REGRESSION

logger = logging.getLogger(__name__)


LabelUse = Literal["needed", "optional", "unread"]


@dataclass(frozen=True)
class _Split:
    """One file as read, its labels not yet turned into numbers."""

    path: Path
    columns: Columns
    texts: list[list[str]]  # of a row, one for each text column
    labels: list[Labelled] | None  # None: the file has none


def load_files(
    files: Mapping[str, Path],
    *,
    flags: Columns | None = None,
    trained_on: Columns | None = None,
    problem_type: str | None = None,
    model: Classes | None = None,
    labels: LabelUse = "needed",
    on_bad_row: str = "error",
) -> TaskData:
    """The task in `files`, which maps "train", "validation" and "test" to paths, in that order.

    Args:
        flags: columns that the user named; the others are chosen.
        trained_on: the columns of the run that a model comes from, which a file must have.
        problem_type: what the labels are; None: as they look.
        model: the classes of a trained model, which the labels must be of; None: they follow from
            the training file.
        labels: whether the validation file must have them, may, or is not asked for them; tests
            may.

    Raises:
        UserError: the files cannot be read as rows of one task.
        BadRow: the first bad row, unless `on_bad_row` is "skip".
    """
    bad_rows = {name: BadRows(on_bad_row) for name in files}
    splits: dict[str, _Split] = {}
    settled = trained_on
    for name, path in files.items():
        use = "needed" if name == "train" else labels if name == "validation" else "optional"
        wanted = Columns() if splits else flags or Columns()
        splits[name] = _read_split(path, wanted, settled, use, bad_rows[name])
        settled = next(iter(splits.values())).columns  # the first file's are those of all
    first, *_ = splits
    if model is None:
        if "train" not in files:
            raise UserError(
                f"{files[first]}: class ids follow from the training file; give --train_file as "
                "well."
            )
        classes, splits[first] = _classes_of(splits[first], problem_type, bad_rows[first])
    else:
        classes = model
        for split in splits.values():
            _check_classes(split, classes)
    _log_classes(classes, splits[first])
    columns = splits[first].columns
    return TaskData(
        spec=custom_spec(
            tuple(map(clean, columns.texts)),
            None if classes.problem_type == REGRESSION else classes.names,
            multi_label=classes.problem_type == MULTI_LABEL,
            label_column=clean(columns.label or "label"),
        ),
        splits={name: _examples(split, classes, bad_rows[name]) for name, split in splits.items()},
        skipped={name: bad.messages for name, bad in bad_rows.items() if bad.messages},
    )


def _read_split(
    path: Path, flags: Columns, settled: Columns | None, labels_are: LabelUse, bad_rows: BadRows
) -> _Split:
    rows = read_rows(path)
    taken = _until_enough_are_good(rows)
    sample = [row for _, row in taken if not isinstance(row, BadRow)]
    columns = Columns()
    if sample:
        columns = choose_columns(path, sample, flags, settled, labels_are == "needed")
        if labels_are == "unread":
            columns = replace(columns, label=None)
        _log_columns(path, sample, columns)
    texts: list[list[str]] = []
    labels: list[Labelled] = []
    for place, row in chain(taken, rows):
        with bad_rows:
            if isinstance(row, BadRow):
                raise row
            row_texts = [_text(place, row, column) for column in columns.texts]
            if columns.label is not None:
                value = checked_label(place, _value(place, row, columns.label))
                labels.append(Labelled(place, value))
            texts.append(row_texts)
    bad_rows.require_rows(path, len(texts))
    return _Split(path, columns, texts, None if columns.label is None else labels)


def _until_enough_are_good(rows: Iterator[Row]) -> list[Row]:
    """The next rows, bad ones among them, as far as it takes to choose columns."""
    taken: list[Row] = []
    good = 0
    for place, row in rows:
        taken.append((place, row))
        good += not isinstance(row, BadRow)
        if good == SAMPLE_ROWS:
            break
    return taken


def _log_columns(path: Path, sample: list[dict[str, Any]], columns: Columns) -> None:
    names = dict.fromkeys(name for row in sample for name in row)
    unread = [name for name in names if name not in (*columns.texts, columns.label)]
    texts = " and ".join(f"{name!r:.60}" for name in columns.texts)
    labels = f"label {columns.label!r:.60}" if columns.label is not None else "no labels"
    rest = f"; not read: {shortened(unread)}" if unread else ""
    logger.info("%s: text %s, %s%s.", path.name, texts, labels, rest)


def _log_classes(classes: Classes, split: _Split) -> None:
    if classes.problem_type == REGRESSION:
        logger.info("Labels: regression.")
        return
    kind = f"{classes.problem_type}, {len(classes.names)} classes"
    logger.info("Labels: %s %s.", kind, shortened(list(classes.names)))
    if classes.of_model and split.labels is not None and not classes.named:
        logger.info("The model's classes have no names: labels are taken as its ids.")


def _text(place: str, row: dict[str, Any], column: str) -> str:
    value = _value(place, row, column)
    column = f"column {column!r:.60}"
    if not isinstance(value, str):
        raise BadRow(f"{place}: {column} holds {value!r:.60}, which is not text.")
    if not value.strip():
        raise BadRow(f"{place}: {column} is empty; fill it in or remove the row.")
    check_characters(place, column, value)
    return value


def _value(place: str, row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise BadRow(f"{place}: there is no column {column!r:.60} among {shortened(list(row))}.")
    return row[column]


def _classes_of(
    split: _Split, problem_type: str | None, bad_rows: BadRows
) -> tuple[Classes, _Split]:
    """The classes of the training file, and its rows that have labels of one kind."""
    labels = split.labels or []
    typed = split.path.suffix.lower() not in (".csv", ".tsv")
    classes, kept = classes_of_file(split.path, labels, problem_type, typed, bad_rows)
    texts = [split.texts[row] for row in kept]
    return classes, _Split(split.path, split.columns, texts, [labels[row] for row in kept])


def _check_classes(split: _Split, model: Classes) -> None:
    """Raises UserError where not one label is a class of the model: not a row is at fault then."""
    if split.labels is None or model.problem_type == REGRESSION:
        return
    names = sorted({name for label in split.labels for name in names_in(label, model.problem_type)})
    if names and not any(model.find(name) is not None for name in names):
        raise UserError(f"{split.path}: the file {unmatched(names, model)}")


def _examples(split: _Split, classes: Classes, bad_rows: BadRows) -> Examples:
    texts: list[list[str]] = []
    labels: list[Any] = []
    for row, row_texts in enumerate(split.texts):
        with bad_rows:
            if split.labels is not None:
                labels.append(encoded(split.labels[row], classes))
            texts.append(row_texts)
    bad_rows.require_rows(split.path, len(texts))
    is_class = classes.problem_type not in (REGRESSION, MULTI_LABEL)
    return Examples(
        text_a=[row[0] for row in texts],
        text_b=[row[1] for row in texts] if len(split.columns.texts) == 2 else None,
        labels=None
        if split.labels is None
        else np.asarray(labels, np.int32 if is_class else np.float32),
    )
