"""The task that a user's own files define, by the column rules of run_glue.

- `label` holds the labels. Strings, integers and booleans make classes, whose names are the sorted
  values (integers in the order of numbers). Numbers with a fraction make a regression task. In csv
  and tsv files, where all is text, the look of the values decides.
- The text columns are `sentence1` and `sentence2` where both are there, else the first one or two
  columns, leaving out `label`, `idx`, `index` and `id`. Any other column is named in the log.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpbert_jax.data.files import read_rows
from dpbert_jax.data.tasks import Examples, TaskData, custom_spec
from dpbert_jax.errors import UserError

logger = logging.getLogger(__name__)

LABEL = "label"
_NO_TEXT = frozenset({LABEL, "idx", "index", "id"})
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

Label = str | int | float  # a bool is an int


@dataclass(frozen=True)
class _Split:
    """One file as read, its labels not yet turned into numbers."""

    path: Path
    columns: tuple[str, ...]  # the text columns
    texts: list[list[str]]  # one list for each of them
    labels: list[Label] | None
    places: list[str]  # where each row stands, for messages


def load_files(files: Mapping[str, Path], labels: Sequence[str] | None = None) -> TaskData:
    """The task in `files`, which maps "train", "validation" and "test" to paths, in that order.

    Rows of the test file may go without labels. The class names are those of the training file;
    `labels` gives them, in id order, where they are known already, from a trained model.

    Raises UserError, naming file and line, for whatever cannot be read as rows of one task.
    """
    splits: dict[str, _Split] = {}
    columns: tuple[str, ...] | None = None
    for name, path in files.items():
        splits[name] = _read_split(path, columns, needs_labels=name != "test")
        columns = splits[name].columns
    first = next(iter(splits.values()))
    names = _class_names(first) if labels is None else tuple(labels)
    if labels is None and names is not None and "train" not in files:
        raise UserError(
            f"{first.path}: class ids follow from the training file; give --train_file as well."
        )
    logger.info("Own files: texts %s, classes %s.", list(first.columns), names or "none")
    return TaskData(
        spec=custom_spec(first.columns, names),
        splits={name: _examples(split, names) for name, split in splits.items()},
    )


def _read_split(path: Path, columns: tuple[str, ...] | None, needs_labels: bool) -> _Split:
    """Read one file; `columns` are the text columns where an earlier file has settled them."""
    places: list[str] = []
    texts: list[list[str]] = []
    labels: list[Label] | None = None
    for place, row in read_rows(path):
        if not places:
            columns = columns or _text_columns(path, list(row))
            texts = [[] for _ in columns]
            labels = [] if needs_labels or LABEL in row else None
        for column, values in zip(columns or (), texts, strict=True):
            values.append(_text(place, row, column))
        if labels is not None:
            labels.append(_label(place, row))
        places.append(place)
    if columns is None or not places:
        raise UserError(f"{path}: the file has no rows.")
    return _Split(path, columns, texts, labels, places)


def _text_columns(path: Path, columns: list[str]) -> tuple[str, ...]:
    usable = [column for column in columns if column not in _NO_TEXT]
    if not usable:
        raise UserError(f"{path}: no text column in {columns}; name one 'sentence1'.")
    paired = {"sentence1", "sentence2"} <= set(usable)
    chosen = ("sentence1", "sentence2") if paired else tuple(usable[:2])
    unread = [column for column in usable if column not in chosen]
    if unread:
        logger.warning("%s: texts are %s; not read: %s.", path, list(chosen), unread)
    return chosen


def _text(place: str, row: dict[str, Any], column: str) -> str:
    value = _value(place, row, column)
    if not isinstance(value, str):
        raise UserError(f"{place}: column '{column}' holds {value!r:.60}, which is not text.")
    if not value.strip():
        raise UserError(f"{place}: column '{column}' is empty; fill it in or remove the row.")
    if any("\ud800" <= character <= "\udfff" for character in value):  # json can escape these
        raise UserError(f"{place}: column '{column}' holds half a surrogate pair; mend the text.")
    return value


def _label(place: str, row: dict[str, Any]) -> Label:
    value = _value(place, row, LABEL)
    if isinstance(value, str):
        value = value.strip() or None
    if value is None:
        raise UserError(f"{place}: the label is missing; fill it in or remove the row.")
    if not isinstance(value, (str, int, float)):
        raise UserError(f"{place}: label {value!r:.60} is not a string, a number or a boolean.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place}: label {value} is not a finite number.")
    return value


def _value(place: str, row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise UserError(f"{place}: there is no column '{column}' among {list(row)}.")
    return row[column]


def _class_names(split: _Split) -> tuple[str, ...] | None:
    """Class names in id order, or None for regression, from the labels of the first file."""
    if split.labels is None:
        raise UserError(f"{split.path}: there is no column '{LABEL}', which training needs.")
    kinds = [_kind(split, label) for label in split.labels]
    found = set(kinds)
    if found == {"integer"}:
        names = [str(value) for value in sorted({int(label) for label in split.labels})]
    elif found <= {"integer", "fraction"}:
        return None
    # A csv file with classes "1", "2" and "3+" is one of strings.
    elif len(found) == 1 or (_is_plain_text(split) and found == {"integer", "string"}):
        names = sorted({str(label) for label in split.labels})
    else:
        odd = next(row for row, kind in enumerate(kinds) if kind != kinds[0])
        raise UserError(
            f"{split.places[odd]}: label {split.labels[odd]!r} is of another kind ({kinds[odd]}) "
            f"than {split.labels[0]!r} ({kinds[0]}); all labels must be of one kind."
        )
    if len(names) < 2:
        raise UserError(f"{split.path}: all labels are '{names[0]}'; a task has two or more.")
    return tuple(names)


def _kind(split: _Split, label: Label) -> str:
    if isinstance(label, str) and not _is_plain_text(split):
        return "string"
    if isinstance(label, bool):
        return "boolean"
    if _INTEGER.fullmatch(str(label)):
        return "integer"
    return "fraction" if _NUMBER.fullmatch(str(label)) else "string"


def _is_plain_text(split: _Split) -> bool:
    """Whether the file knows no types, so that 1 and "1" are the same in it."""
    return split.path.suffix.lower() in (".csv", ".tsv")


def _examples(split: _Split, names: tuple[str, ...] | None) -> Examples:
    labels = None
    if split.labels is not None:
        ids = {name: index for index, name in enumerate(names or ())}
        labels = np.asarray(
            [
                _score(split, place, label) if names is None else _class_id(place, label, ids)
                for place, label in zip(split.places, split.labels, strict=True)
            ],
            dtype=np.float32 if names is None else np.int32,
        )
    text_b = split.texts[1] if len(split.texts) == 2 else None
    return Examples(split.texts[0], text_b, labels)


def _score(split: _Split, place: str, label: Label) -> float:
    if _kind(split, label) not in ("integer", "fraction"):
        raise UserError(f"{place}: label {label!r} is not a number, as the other labels are.")
    return float(label)


def _class_id(place: str, label: Label, ids: dict[str, int]) -> int:
    name = str(label)
    if name not in ids and _INTEGER.fullmatch(name):
        name = str(int(name))  # "01" is class 1 where the classes are integers
    if name not in ids:
        raise UserError(f"{place}: label '{label}' is not one of {list(ids)}.")
    return ids[name]
