"""Rows of csv, tsv, json, jsonl and parquet files, each with the place that it came from.

csv files are quoted as Python's csv module and spreadsheets do it. tsv files know no quotes, as
those of GLUE: a field ends at a tab, a row at the end of the line. Both are UTF-8 with a header.
A json file is a list of objects, `{"data": [objects]}`, or (as jsonl) one object per line.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dpbert_jax.errors import UserError

# A row by column, and where it stands, as "train.csv line 12", for messages.
Row = tuple[str, dict[str, Any]]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, in order; the values of csv and tsv files are all strings.

    Raises UserError, naming file and line (row in parquet and in lists), for what is not a row.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: the name must end in one of {', '.join(READERS)}.")
    return reader(path)


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, line ends kept, a leading byte-order mark removed.

    Lines end at `\\n` only: `str.splitlines` would also split at characters that occur in texts.
    Raises UserError for a missing or empty file, and for a line that is not UTF-8.
    """
    _check_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path.name} line {number}: byte {error.start + 1} is not valid UTF-8; "
                    "save the file as UTF-8."
                ) from None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")


def _read_csv(path: Path) -> Iterator[Row]:
    return _read_delimited(path, csv.reader(text_lines(path), strict=True))


def _read_tsv(path: Path) -> Iterator[Row]:
    lines = text_lines(path)
    return _read_delimited(path, csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def _read_delimited(path: Path, reader: Any) -> Iterator[Row]:
    header: list[str] | None = None
    line = 1  # where the row starts; a quoted field may hold line ends
    try:
        for cells in reader:
            place, line = f"{path.name} line {line}", reader.line_num + 1
            if header is None:
                header = _checked_header(place, cells)
            # A blank line holds no row, except where a row is one field: that may be an empty one.
            elif cells or len(header) == 1:
                cells = cells or [""]
                if len(cells) != len(header):
                    raise UserError(
                        f"{place}: {len(cells)} columns where the header has {len(header)}, "
                        f"{header}; mend or remove the row."
                    )
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path.name} line {line}: {error}; mend the row.") from None


def _checked_header(place: str, header: list[str]) -> list[str]:
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise UserError(f"{place}: column '{repeated[0]}' appears twice; rename one of them.")
    return header


def _read_json(path: Path) -> Iterator[Row]:
    lines = list(text_lines(path))
    if _is_one_row(next((line for line in lines if line.strip()), "")):
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path.name} line {number}"
                yield place, _as_row(place, _parse(path, line.strip(), number))
        return
    document = _parse(path, "".join(lines), 1)
    if isinstance(document, dict):
        document = document.get("data")
    if not isinstance(document, list):
        raise UserError(
            f'{path}: expected a list of objects, {{"data": [objects]}}, or one object per line.'
        )
    for number, value in enumerate(document, start=1):
        place = f"{path.name} row {number}"
        yield place, _as_row(place, value)


def _is_one_row(line: str) -> bool:
    """Whether the first line of a json file is a row by itself: then so is every other."""
    try:
        value = json.loads(line)
    except ValueError:
        return False  # the document goes on past this line
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _parse(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path.name} line {line}: not valid JSON ({error.msg}).") from None


def _as_row(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected an object of named columns, found {value!r:.60}.")
    return value


def _read_parquet(path: Path) -> Iterator[Row]:
    # Imported here: a command that reads no parquet file should not wait for it.
    import pyarrow
    from pyarrow import parquet

    _check_file(path)
    try:
        with parquet.ParquetFile(path) as file:
            _checked_header(path.name, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}).") from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}
