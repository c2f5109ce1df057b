"""Rows of csv, tsv, json, jsonl and parquet files, each with the place that it came from.

csv files are quoted as Python's csv module and spreadsheets do it. tsv files know no quotes, as
those of GLUE: a field ends at a tab, a row at the end of the line. Both are UTF-8 with a header; a
blank line is no row, except where a row is a single field.
A json file is a list of objects, `{"data": [objects]}`, or, as any jsonl file, one object per line.

A row that cannot be read does not end the reading: a BadRow stands in its place.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from dpbert_jax.data.bad_rows import BadRow
from dpbert_jax.errors import UserError

# Where a row stands, as "train.csv line 12", for messages; and the row by column.
Row = tuple[str, dict[str, Any] | BadRow]
Record = tuple[str, list[str] | BadRow]  # the same before its fields have names

_CSV_FIELD_LIMIT = 2**31 - 1  # the most that every platform takes


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, in order; the values of csv and tsv files are all strings.

    Raises UserError for a file that cannot be read as rows at all.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: the name must end in one of {', '.join(READERS)}.")
    return reader(path)


def text_lines(path: Path, faults: list[BadRow]) -> Iterator[str]:
    """The lines of a UTF-8 file, as `decoded` gives them.

    Raises UserError for a missing or empty file.
    """
    _check_file(path)
    with path.open("rb") as file:
        yield from decoded(path.name, file, faults)


def decoded(name: str, lines: Iterable[bytes], faults: list[BadRow]) -> Iterator[str]:
    """UTF-8 lines as text, line ends kept, a leading byte-order mark removed.

    Lines end at `\\n` only: `str.splitlines` would also split at characters that occur in texts.
    A line that is not UTF-8, or has a NUL in it, comes out all the same, as far as it can be
    decoded, since the row's end may depend on it; and `faults` gets what is wrong with it.
    """
    for number, line in enumerate(lines, start=1):
        place = f"{name} line {number}"
        if b"\0" in line:
            faults.append(
                BadRow(
                    f"{place}: byte {line.index(0) + 1} is NUL, which is no text; "
                    "save the file as UTF-8."
                )
            )
        encoding = "utf-8-sig" if number == 1 else "utf-8"
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            faults.append(
                BadRow(
                    f"{place}: byte {error.start + 1} is not valid UTF-8; save the file as UTF-8."
                )
            )
            text = line.decode(encoding, "replace")
        yield text


def text_on_each(name: str, lines: Iterable[bytes]) -> Iterator[str]:
    """The texts of lines with one text each.

    Raises BadRow for a line that is blank or no text: none is left out.
    """
    faults: list[BadRow] = []
    for number, line in enumerate(decoded(name, lines, faults), start=1):
        fault = _taken(faults)
        if fault is None and not line.strip():
            fault = BadRow(f"{name} line {number}: the line is empty; fill it in or remove it.")
        if fault:
            raise fault
        yield line.rstrip("\r\n")


def text_file(path: Path) -> list[str]:
    """The texts of a plain file, one a line.

    Raises UserError for a missing or empty file, and as `text_on_each` does.
    """
    _check_file(path)
    with path.open("rb") as file:
        return list(text_on_each(path.name, file))


def tsv_records(path: Path) -> Iterator[Record]:
    """The fields of every line of a tsv file, the header among them."""
    faults: list[BadRow] = []
    for number, line in enumerate(text_lines(path, faults), start=1):
        yield f"{path.name} line {number}", _taken(faults) or line.rstrip("\r\n").split("\t")


def checked_header(place: str, header: list[str]) -> list[str]:
    """The header; raises UserError for a column that is there twice."""
    if len(set(header)) < len(header):
        repeated = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{place}: column {repeated!r:.60} appears twice; rename one of them.")
    return header


def _taken(faults: list[BadRow]) -> BadRow | None:
    """The first fault of a row's lines, out of the way of the next row."""
    fault = faults[0] if faults else None
    faults.clear()
    return fault


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")


def _csv_records(path: Path) -> Iterator[Record]:
    faults: list[BadRow] = []
    reader = csv.reader(text_lines(path, faults), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells, mismatch = _next_cells(reader), None
        except StopIteration:
            return
        except csv.Error as error:
            cells, mismatch = [], str(error).partition(" - ")[0]
        last = reader.line_num
        lines = f"line {first}" if last == first else f"lines {first} to {last}"
        place = f"{path.name} {lines}"
        if mismatch and last > first:
            # Not a BadRow: a stray quote runs into the rows after it, and where they begin again
            # would be a guess.
            raise UserError(f"{place}: a quoted field is not closed ({mismatch}); mend its quotes.")
        bad = BadRow(f"{place}: {mismatch}; mend the row.") if mismatch else None
        yield place, _taken(faults) or bad or cells


def _next_cells(reader: Any) -> list[str]:
    """The next row, however long its fields are; csv's limit is for all readers of the process."""
    limit = csv.field_size_limit(_CSV_FIELD_LIMIT)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(limit)


def _read_csv(path: Path) -> Iterator[Row]:
    return _by_column(_csv_records(path))


def _read_tsv(path: Path) -> Iterator[Row]:
    return _by_column(tsv_records(path))


def _by_column(records: Iterator[Record]) -> Iterator[Row]:
    header: list[str] | None = None
    for place, cells in records:
        if header is None:
            if isinstance(cells, BadRow):
                raise cells
            header = checked_header(place, cells)
        elif isinstance(cells, BadRow):
            yield place, cells
        elif len(header) == 1 or cells not in ([], [""]):
            yield place, _named(place, header, cells or [""])


def _named(place: str, header: list[str], cells: list[str]) -> dict[str, Any] | BadRow:
    if len(cells) != len(header):
        return BadRow(
            f"{place}: {len(cells)} columns where the header has {len(header)}, "
            f"{shortened(header)}; mend or remove the row."
        )
    return dict(zip(header, cells, strict=True))


def _read_json(path: Path) -> Iterator[Row]:
    faults: list[BadRow] = []
    lines = list(text_lines(path, faults))
    if _is_one_row(next((line for line in lines if line.strip()), "")):
        yield from _read_jsonl(path)
        return
    if faults:
        raise faults[0]
    document = _parsed(path.name, "".join(lines), 1)
    if isinstance(document, BadRow):
        raise document
    if isinstance(document, dict):
        document = document.get("data")
    if not isinstance(document, list):
        raise UserError(
            f'{path}: expected a list of objects, {{"data": [objects]}}, or one object per line.'
        )
    for number, value in enumerate(document, start=1):
        place = f"{path.name} row {number}"
        yield place, _as_row(place, value)


def _read_jsonl(path: Path) -> Iterator[Row]:
    faults: list[BadRow] = []
    for number, line in enumerate(text_lines(path, faults), start=1):
        place, fault = f"{path.name} line {number}", _taken(faults)
        if fault or line.strip():
            yield place, fault or _as_row(place, _parsed(path.name, line.strip(), number))


@dataclass(frozen=True)
class _Repeated:
    """Stands for a json object that has a key twice, of which Python would keep the last."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        return _Repeated(next(key for key in keys if keys.count(key) > 1))
    return dict(pairs)


def _is_one_row(line: str) -> bool:
    """Whether the first line of a json file is a row by itself: then so is every other."""
    value = _parsed("", line, 1)
    return isinstance(value, _Repeated) or (
        isinstance(value, dict) and not isinstance(value.get("data"), list)
    )


def _parsed(name: str, text: str, first_line: int) -> Any:
    """What the text says, or a BadRow that says why it says nothing."""
    line, why = first_line, "a number has too many digits"
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line, why = first_line + error.lineno - 1, error.msg
    except RecursionError:
        why = "it is nested too deep"
    except ValueError:  # an integer of more than 4300 digits
        pass
    return BadRow(f"{name} line {line}: not valid JSON ({why}).")


def _as_row(place: str, value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, _Repeated):
        return BadRow(f"{place}: column {value.key!r:.60} appears twice; remove one of them.")
    if isinstance(value, dict | BadRow):
        return value
    return BadRow(f"{place}: expected an object of named columns, found {value!r:.60}.")


def _read_parquet(path: Path) -> Iterator[Row]:
    # Imported here: a command that reads no parquet file should not wait for it.
    import pyarrow
    from pyarrow import parquet

    _check_file(path)
    try:
        with parquet.ParquetFile(path) as file:
            checked_header(path.name, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches():
                for row in range(batch.num_rows):
                    number += 1
                    place = f"{path.name} row {number}"
                    yield place, _parquet_row(place, batch, row)
    except (pyarrow.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable parquet file ({why}).") from None


def _parquet_row(place: str, batch: Any, row: int) -> dict[str, Any] | BadRow:
    values: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[row].as_py()
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date out of range
            return BadRow(f"{place}: column {name!r:.60} cannot be read ({error}).")
    return values


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
