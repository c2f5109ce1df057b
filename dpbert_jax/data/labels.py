"""What the labels of one's own files are: classes, scores, or any number of classes a row.

The problem type is the one asked for, else it follows from the labels:
- lists, of names or of 0 and 1: any number of classes a row;
- strings and booleans: classes; whole numbers: classes "0", "1", ...;
- numbers with a fraction: scores, and so are strings that all look like such.
- Whole numbers that are written as floats ("1.0", as pandas writes integers beside gaps): classes
  where they are few, else scores.
Of lists, numbers, booleans and strings in one file, the rows of the kind that most have are good,
the others bad. In csv and tsv files, where all is text, the look of the values decides.
"""

import ast
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NamedTuple, cast

import numpy as np

from dpbert_jax.data.bad_rows import BadRow, BadRows
from dpbert_jax.data.classes import NUMBER, Classes, whole_number
from dpbert_jax.errors import UserError
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType

logger = logging.getLogger(__name__)

FEW_CLASSES = 10  # more different numbers than these look like scores
LARGEST_SCORE = float(np.finfo(np.float32).max)
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # json can escape these, parquet can hold a NUL

Label = str | int | float | list  # a bool is an int


class Labelled(NamedTuple):
    place: str  # where the row stands, for messages
    value: Label


def check_characters(place: str, what: str, text: str) -> None:
    """Raises BadRow for what no text holds."""
    strange = _NOT_TEXT.search(text)
    if strange:
        name = "a NUL" if strange.group() == "\0" else "half a surrogate pair"
        raise BadRow(f"{place}: {what} holds {name}; mend the text.")


def checked_label(place: str, value: Any) -> Label:
    """A value as it stands in the file, if it can be a label at all; BadRow says why not."""
    if isinstance(value, list):
        return [_checked_scalar(place, item) for item in value]
    return _checked_scalar(place, value)


def _checked_scalar(place: str, value: Any) -> str | int | float:
    if isinstance(value, str):
        check_characters(place, "the label", value)
        value = value.strip() or None
    if value is None:
        raise BadRow(f"{place}: the label is missing; fill it in or remove the row.")
    if not isinstance(value, (str, int, float)):
        raise BadRow(
            f"{place}: label {value!r:.60} is not a string, a number, a boolean, or a list of them."
        )
    if not isinstance(value, str) and not abs(value) <= LARGEST_SCORE:
        raise BadRow(f"{place}: label {value!r:.60} is not a finite number.")
    return value


def classes_of_file(
    path: Path,
    labels: Sequence[Labelled],
    problem_type: str | None,
    typed: bool,
    bad_rows: BadRows,
) -> tuple[Classes, list[int]]:
    """The classes of a training file, and which of its rows have a label of their kind.

    Args:
        problem_type: what the labels are; None: as they look.
        typed: whether the file tells 1 from "1".

    Raises:
        UserError: there are fewer than two classes, or no such problem type.
        BadRow: a label is of another kind, unless `bad_rows` skips those.
    """
    if problem_type is None:
        kept, problem = _inferred(path, labels, typed, bad_rows)
    elif problem_type not in _READABLE:
        raise UserError(f"--problem_type {problem_type} is not one of {list(_READABLE)}.")
    else:
        problem = cast(ProblemType, problem_type)
        kept = _readable(labels, *_READABLE[problem], bad_rows)
    names: tuple[str, ...] = ()
    if problem == MULTI_LABEL:
        kept, names = _names_of_lists(labels, kept, bad_rows)
    elif problem == SINGLE_LABEL:
        names = _names_of_values([labels[row].value for row in kept])
    bad_rows.require_rows(path, len(kept))
    if len(names) < 2 and problem != REGRESSION:
        only = repr(names[0])[:60] if names else "empty"
        raise UserError(f"{path}: all labels are {only}; a task has two or more.")
    return Classes(problem, names), kept


def encoded(label: Labelled, classes: Classes) -> int | float | list[float]:
    """A label as a number: its class id, its score, or 1 for each class that the row has."""
    place, value = label
    if classes.problem_type == REGRESSION:
        if _kind(value) not in _NUMBERS:
            raise BadRow(f"{place}: label {value!r:.60} is not a number, as other labels are.")
        return float(str(value))
    if classes.problem_type == MULTI_LABEL:
        return _indicators(place, listed(place, value), classes)
    if isinstance(value, list):
        raise BadRow(f"{place}: label {value!r:.60} is a list, but a row has one class.")
    return _class_id(place, str(value), classes)


def names_in(label: Labelled, problem_type: ProblemType) -> list[str]:
    """The class names that a label holds; none where it is a list of 0 and 1, or no such label."""
    if problem_type == SINGLE_LABEL:
        return [] if isinstance(label.value, list) else [str(label.value)]
    try:
        values = listed(*label)
    except BadRow:
        return []
    return [value for value in values if isinstance(value, str)]


def listed(place: str, value: Label) -> list:
    """The entries of a label of any number of classes: a list, or text that spells one."""
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        raise BadRow(f"{place}: label {value!r:.60} is not a list of classes.")
    spelled = _spelled_list(value)
    if spelled is not None:
        return [_checked_scalar(place, item) for item in spelled]
    if value.startswith("["):
        raise BadRow(f"{place}: label {value!r:.60} is not valid JSON; mend the list.")
    names = [name.strip() for name in value.split(",")]
    if all(map(whole_number, names)):
        raise BadRow(
            f"{place}: label {value!r:.60} could be names or a row of 0 and 1; write the names as "
            f'["{names[0]}"], or the row as [0, 1].'
        )
    return names


def _spelled_list(text: str) -> list | None:
    """The list that a cell spells in json, or in Python as pandas writes it."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else None
    return None


def _kind(value: Label) -> str:
    """What a label looks like."""
    if isinstance(value, list):
        return "list"
    if isinstance(value, bool):
        return "boolean"
    text = str(value)
    if isinstance(value, str) and _spelled_list(text) is not None:
        return "list"
    if not NUMBER.fullmatch(text) or not abs(float(text)) <= LARGEST_SCORE:
        return "string"
    if whole_number(text) is None:
        return "fraction"
    return "integer" if re.fullmatch("[+-]?[0-9]+", text) else "whole number"


_NUMBERS = {"integer", "whole number", "fraction"}
_READABLE: dict[str, tuple[Callable[[Label], bool], str]] = {
    REGRESSION: (lambda value: _kind(value) in _NUMBERS, "a number"),
    SINGLE_LABEL: (lambda value: not isinstance(value, list), "one class"),
    MULTI_LABEL: (lambda value: isinstance(value, (list, str)), "a list of classes"),
}


def _readable(
    labels: Sequence[Labelled], holds: Callable[[Label], bool], wanted: str, bad_rows: BadRows
) -> list[int]:
    """The rows whose labels are what was asked for."""
    kept: list[int] = []
    for row, (place, value) in enumerate(labels):
        with bad_rows:
            if not holds(value):
                raise BadRow(f"{place}: label {value!r:.60} is not {wanted}.")
            kept.append(row)
    return kept


def _inferred(
    path: Path, labels: Sequence[Labelled], typed: bool, bad_rows: BadRows
) -> tuple[list[int], ProblemType]:
    """The rows of the usual kind, and the problem that they make; doubts are logged."""
    kinds = [_kind(value) for _, value in labels]
    kept = list(range(len(labels)))
    if typed:
        kept = _of_usual(labels, kept, kinds, [_type(value) for _, value in labels], bad_rows)
    as_text = not typed or isinstance(labels[kept[0]].value, str)
    # A csv file with classes "1", "2" and "3+" is one of strings.
    if as_text and not {kinds[row] for row in kept} <= {"integer", "string"}:
        families = ["number" if kind in _NUMBERS else kind for kind in kinds]
        kept = _of_usual(labels, kept, kinds, families, bad_rows)
    seen = {kinds[row] for row in kept}
    if seen == {"list"}:
        return kept, MULTI_LABEL
    if not seen <= _NUMBERS:
        return kept, SINGLE_LABEL
    different = len({float(str(labels[row].value)) for row in kept})
    if "fraction" in seen:
        problem_type, read_as, other = REGRESSION, "scores", SINGLE_LABEL
        doubt = "numbers written as strings" if typed and as_text else None
    elif seen != {"integer"} and different > FEW_CLASSES:
        problem_type, read_as, other = REGRESSION, "scores", SINGLE_LABEL
        doubt = "whole numbers written with a decimal point"
    else:
        problem_type, read_as, other = SINGLE_LABEL, "classes", REGRESSION
        doubt = "whole numbers" if different > FEW_CLASSES else None
        doubt = doubt if seen == {"integer"} else "whole numbers written with a decimal point"
    if doubt:
        logger.warning(
            "%s: the labels are %s, such as %r, %d different ones: read as %s. If that is wrong, "
            "say --problem_type %s.",
            path.name,
            doubt,
            labels[kept[0]].value,
            different,
            read_as,
            other,
        )
    return kept, problem_type


def _type(value: Label) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", list: "list"}.get(type(value), "number")


def _of_usual(
    labels: Sequence[Labelled],
    rows: list[int],
    kinds: list[str],
    families: list[str],
    bad_rows: BadRows,
) -> list[int]:
    """Those of the rows that are of the family that most are of; of equals, the first one's."""
    family, _ = Counter(families[row] for row in rows).most_common(1)[0]
    usual = next(row for row in rows if families[row] == family)
    kept: list[int] = []
    for row in rows:
        with bad_rows:
            if families[row] != family:
                raise BadRow(
                    f"{labels[row].place}: label {labels[row].value!r:.60} is of another kind "
                    f"({kinds[row]}) than {labels[usual].value!r:.60} ({kinds[usual]}); all labels "
                    "must be of one kind."
                )
            kept.append(row)
    return kept


def _names_of_values(values: list[Label]) -> tuple[str, ...]:
    """Sorted; of numbers in the order of numbers, each in its usual spelling."""
    texts = {str(value) for value in values}
    if all(map(NUMBER.fullmatch, texts)):
        usual = {whole_number(text) or text for text in texts}
        return tuple(sorted(usual, key=lambda text: (float(text), text)))
    return tuple(sorted(texts))


def _names_of_lists(
    labels: Sequence[Labelled], rows: list[int], bad_rows: BadRows
) -> tuple[list[int], tuple[str, ...]]:
    """The rows that are lists of one kind, and the classes: by their names, or by position."""
    entries: dict[int, list] = {}
    for row in rows:
        with bad_rows:
            entries[row] = listed(*labels[row])
    # A name for a list of names, a width for a row of 0 and 1; an empty list may be either.
    shapes = {row: len(values) for row, values in entries.items() if _is_indicator(values)}
    by_name = 2 * len(shapes) < sum(bool(values) for values in entries.values())
    if not by_name and shapes:
        width, _ = Counter(shapes.values()).most_common(1)[0]
        classes = Classes(MULTI_LABEL, tuple(str(index) for index in range(width)))
    else:
        usable = (values for values in entries.values() if all(isinstance(v, str) for v in values))
        names = {v for values in usable for v in values if len(set(values)) == len(values)}
        classes = Classes(MULTI_LABEL, tuple(sorted(names)))
    kept: list[int] = []
    for row, values in entries.items():
        with bad_rows:
            _indicators(labels[row].place, values, classes)
            kept.append(row)
    return kept, classes.names


def _is_indicator(values: list) -> bool:
    return bool(values) and all(not isinstance(v, str) and v in (0, 1) for v in values)


def _indicators(place: str, values: list, classes: Classes) -> list[float]:
    """1 for each class that the row has; [C]."""
    if _is_indicator(values) or (not values and not classes.named):
        if classes.named and not classes.of_model:
            raise BadRow(f"{place}: label {values!r:.60} does not name its classes, as others do.")
        if len(values) != len(classes.names):
            raise BadRow(
                f"{place}: label {values!r:.60} has {len(values)} entries, but there are "
                f"{len(classes.names)} classes."
            )
        return [float(value) for value in values]
    row = [0.0] * len(classes.names)
    for value in values:
        if not isinstance(value, str):
            raise BadRow(f"{place}: label {values!r:.60} is no list of names, nor one of 0 and 1.")
        index = _class_id(place, value, classes)
        if row[index]:
            raise BadRow(f"{place}: label {values!r:.60} names {value!r:.60} twice.")
        row[index] = 1.0
    return row


def _class_id(place: str, name: str, classes: Classes) -> int:
    index = classes.find(name)
    if index is None:
        known = shortened(list(classes.names))
        advice = "; --label_mapping says which of them it is" if classes.of_model else ""
        raise BadRow(f"{place}: label {name!r:.60} is not one of {known}{advice}.")
    return index
