"""The task that a user's own files define, by the column rules of run_glue.

- `label` holds the labels. Strings, integers and booleans make classes, whose names are the sorted
  values (integers in the order of numbers). Numbers with a fraction make a regression task. In csv
  and tsv files, where all is text, the look of the values decides. Of numbers, booleans and strings
  in one training file, the rows of the kind that most rows have are good, the others bad.
- The text columns are `sentence1` and `sentence2` where both are there, else the first one or two
  columns, leaving out `label`, `idx`, `index` and `id`. Any other column is named in the log.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NamedTuple

import numpy as np

from dpbert_jax.data.bad_rows import BadRow, BadRows
from dpbert_jax.data.files import read_rows
from dpbert_jax.data.tasks import Examples, TaskData, custom_spec
from dpbert_jax.errors import UserError

logger = logging.getLogger(__name__)

LABEL = "label"
_NO_TEXT = frozenset({LABEL, "idx", "index", "id"})
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LARGEST_SCORE = float(np.finfo(np.float32).max)
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # json can escape these, parquet can hold a NUL

Label = str | int | float  # a bool is an int


class _Row(NamedTuple):
    place: str  # where it stands, for messages
    texts: list[str]  # one for each text column
    label: Label | None  # None: the file has none


@dataclass(frozen=True)
class _Split:
    """One file as read, its labels not yet turned into numbers."""

    path: Path
    columns: tuple[str, ...]  # the text columns
    has_labels: bool
    rows: list[_Row]


def load_files(
    files: Mapping[str, Path],
    labels: Sequence[str] | None = None,
    on_bad_row: str = "error",
) -> TaskData:
    """The task in `files`, which maps "train", "validation" and "test" to paths, in that order.

    Rows of the test file may go without labels. The class names are those of the training file;
    `labels` gives them, in id order, where they are known already, from a trained model; empty for
    scores.

    Raises UserError for what cannot be read as rows of one task; BadRow, naming file and line, for
    the first bad row, unless `on_bad_row` is "skip".
    """
    bad_rows = {name: BadRows(on_bad_row) for name in files}
    splits: dict[str, _Split] = {}
    columns: tuple[str, ...] | None = None
    for name, path in files.items():
        splits[name] = _read_split(path, columns, name != "test", bad_rows[name])
        columns = splits[name].columns
    first, *_ = splits
    if labels is None:
        splits[first] = _of_one_kind(splits[first], bad_rows[first])
        names = _class_names(splits[first])
        if names is not None and "train" not in files:
            raise UserError(
                f"{files[first]}: class ids follow from the training file; give --train_file as "
                "well."
            )
    else:
        names = tuple(labels) or None
    texts = splits[first].columns
    classes = f"{len(names)} classes {shortened(list(names))}" if names else "scores"
    logger.info("Own files: texts %s, %s.", shortened(list(texts)), classes)
    return TaskData(
        spec=custom_spec(texts, names),
        splits={name: _examples(split, names, bad_rows[name]) for name, split in splits.items()},
        skipped={name: bad.messages for name, bad in bad_rows.items() if bad.messages},
    )


def _read_split(
    path: Path, columns: tuple[str, ...] | None, needs_labels: bool, bad_rows: BadRows
) -> _Split:
    """Read one file; `columns` are the text columns where an earlier file has settled them."""
    rows: list[_Row] = []
    has_labels = needs_labels
    for place, row in read_rows(path):
        with bad_rows:
            if isinstance(row, BadRow):
                raise row
            found = columns or _text_columns(place, list(row))
            if not rows:
                has_labels = needs_labels or LABEL in row
            texts = [_text(place, row, column) for column in found]
            rows.append(_Row(place, texts, _label(place, row) if has_labels else None))
            if columns is None:
                _log_unread(path, list(row), found)
                columns = found
    bad_rows.require_rows(path, len(rows))
    return _Split(path, columns or (), has_labels, rows)


def _text_columns(place: str, columns: list[str]) -> tuple[str, ...]:
    usable = _usable(columns)
    if not usable:
        raise BadRow(f"{place}: no text column in {shortened(columns)}; name one 'sentence1'.")
    paired = {"sentence1", "sentence2"} <= set(usable)
    return ("sentence1", "sentence2") if paired else tuple(usable[:2])


def _usable(columns: list[str]) -> list[str]:
    return [column for column in columns if column not in _NO_TEXT]


def _log_unread(path: Path, columns: list[str], chosen: tuple[str, ...]) -> None:
    unread = [column for column in _usable(columns) if column not in chosen]
    if unread:
        logger.warning(
            "%s: texts are %s; not read: %s.", path, shortened(list(chosen)), shortened(unread)
        )


def _text(place: str, row: dict[str, Any], column: str) -> str:
    value = _value(place, row, column)
    column = f"column {column!r:.60}"
    if not isinstance(value, str):
        raise BadRow(f"{place}: {column} holds {value!r:.60}, which is not text.")
    if not value.strip():
        raise BadRow(f"{place}: {column} is empty; fill it in or remove the row.")
    _check_characters(place, column, value)
    return value


def _check_characters(place: str, what: str, text: str) -> None:
    found = _NOT_TEXT.search(text)
    if found:
        name = "a NUL" if found.group() == "\0" else "half a surrogate pair"
        raise BadRow(f"{place}: {what} holds {name}; mend the text.")


def _label(place: str, row: dict[str, Any]) -> Label:
    value = _value(place, row, LABEL)
    if isinstance(value, str):
        _check_characters(place, "the label", value)
        value = value.strip() or None
    if value is None:
        raise BadRow(f"{place}: the label is missing; fill it in or remove the row.")
    if not isinstance(value, (str, int, float)):
        raise BadRow(f"{place}: label {value!r:.60} is not a string, a number or a boolean.")
    if not isinstance(value, str) and not abs(value) <= _LARGEST_SCORE:
        raise BadRow(f"{place}: label {value!r:.60} is not a finite number.")
    return value


def _value(place: str, row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise BadRow(f"{place}: there is no column {column!r:.60} among {shortened(list(row))}.")
    return row[column]


def _of_one_kind(split: _Split, bad_rows: BadRows) -> _Split:
    """The rows whose labels are of the kind that most labels are of: numbers, booleans, strings."""
    kinds = [_kind(split, row) for row in split.rows]
    # A csv file with classes "1", "2" and "3+" is one of strings.
    if _is_plain_text(split) and set(kinds) <= {"integer", "string"}:
        return split
    families = ["number" if kind in ("integer", "fraction") else kind for kind in kinds]
    # Of equals, the one that comes first.
    usual = families.index(Counter(families).most_common(1)[0][0])
    kept: list[_Row] = []
    for row, kind, family in zip(split.rows, kinds, families, strict=True):
        with bad_rows:
            if family != families[usual]:
                raise BadRow(
                    f"{row.place}: label {row.label!r:.60} is of another kind ({kind}) than "
                    f"{split.rows[usual].label!r:.60} ({kinds[usual]}); all labels must be of one "
                    "kind."
                )
            kept.append(row)
    return replace(split, rows=kept)


def _class_names(split: _Split) -> tuple[str, ...] | None:
    """Class names in id order, or None for regression, from labels of one kind."""
    kinds = {_kind(split, row) for row in split.rows}
    labels = {str(row.label) for row in split.rows}
    if kinds == {"integer"}:
        names = [str(value) for value in sorted({int(label) for label in labels})]
    elif kinds <= {"integer", "fraction"}:
        return None
    else:
        names = sorted(labels)
    if len(names) < 2:
        raise UserError(f"{split.path}: all labels are {names[0]!r:.60}; a task has two or more.")
    return tuple(names)


def _kind(split: _Split, row: _Row) -> str:
    if isinstance(row.label, str) and not _is_plain_text(split):
        return "string"
    if isinstance(row.label, bool):
        return "boolean"
    text = str(row.label)
    if _INTEGER.fullmatch(text):
        return "integer"
    is_number = _NUMBER.fullmatch(text) and abs(float(text)) <= _LARGEST_SCORE
    return "fraction" if is_number else "string"


def _is_plain_text(split: _Split) -> bool:
    """Whether the file knows no types, so that 1 and "1" are the same in it."""
    return split.path.suffix.lower() in (".csv", ".tsv")


def _examples(split: _Split, names: tuple[str, ...] | None, bad_rows: BadRows) -> Examples:
    ids = {name: index for index, name in enumerate(names or ())}
    texts: list[list[str]] = []
    labels: list[int | float] = []
    for row in split.rows:
        with bad_rows:
            if split.has_labels:
                labels.append(_score(split, row) if names is None else _class_id(row, ids))
            texts.append(row.texts)
    bad_rows.require_rows(split.path, len(texts))
    dtype = np.float32 if names is None else np.int32
    return Examples(
        text_a=[row[0] for row in texts],
        text_b=[row[1] for row in texts] if len(split.columns) == 2 else None,
        labels=np.asarray(labels, dtype) if split.has_labels else None,
    )


def _score(split: _Split, row: _Row) -> float:
    if _kind(split, row) not in ("integer", "fraction"):
        raise BadRow(f"{row.place}: label {row.label!r:.60} is not a number, as other labels are.")
    return float(str(row.label))


def _class_id(row: _Row, ids: dict[str, int]) -> int:
    name = str(row.label)
    if name not in ids and _INTEGER.fullmatch(name):
        name = str(int(name))  # "01" is class 1 where the classes are integers
    if name not in ids:
        known = shortened(list(ids))
        raise BadRow(f"{row.place}: label {str(row.label)!r:.60} is not one of {known}.")
    return ids[name]
