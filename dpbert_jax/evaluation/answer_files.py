"""Answers as rows of a file: JSON lines, or a table with a column for each probability."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dpbert_jax.errors import UserError
from dpbert_jax.integrity import write_whole

DELIMITERS = {".csv": ",", ".tsv": "\t"}
ANSWER_FILES = (*DELIMITERS, ".jsonl")


def check_answer_file(output_file: str | None) -> None:
    """Refuses a name whose ending is of no known kind."""
    if output_file and Path(output_file).suffix.lower() not in ANSWER_FILES:
        raise UserError(
            f"--output_file {output_file}: must end in one of {', '.join(ANSWER_FILES)}."
        )


def make_room(path: Path) -> None:
    """Makes the folder of a file, so that what cannot be written is refused before it is computed.

    Raises:
        UserError: the file could not be written there.
    """
    if path.is_dir():
        raise UserError(f"--output_file {path} is a folder: name a file.")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        partial.unlink(missing_ok=True)  # other processes of an evaluation try as well
    except OSError as error:
        raise UserError(f"--output_file {path} cannot be written: {error.strerror}.") from error


def answer_row(
    index: int,
    label: str | Sequence[str] | None,
    score: float,
    probabilities: dict[str, float] | None,
    layers: Sequence[int],
    cost: float,
) -> dict[str, Any]:
    """A row: an input's number from 0, what the model says, the layers that ran, their cost.

    `label` is the class's name, or the list of the labels; `probabilities` go by name. A regression
    has `score` in their place.
    """
    row: dict[str, Any] = {"index": index}
    if probabilities is None:
        row["score"] = score
    else:
        row["label"] = list(label) if isinstance(label, tuple) else label
        row["probabilities"] = probabilities
    return {**row, "layers": list(layers), "cost": cost}


def write_answer_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes the rows in one move, in the form that the name's ending says.

    Raises:
        UserError: the file cannot be written.
    """
    delimiter = DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        table = [_flat(row) for row in rows]
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, list(table[0]) if table else [], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(table)
        text = buffer.getvalue()
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"--output_file {path} cannot be written: {error.strerror}.") from error


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """For a table: a column for each probability, numbers of layers with blanks between."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "probabilities":
            flat |= {f"probability_{label}": share for label, share in value.items()}
        elif isinstance(value, list):
            flat[name] = (" " if name == "layers" else ",").join(map(str, value))
        else:
            flat[name] = value
    return flat
