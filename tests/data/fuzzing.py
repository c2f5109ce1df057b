"""Damaged data files, and what loading one may lead to: all of its rows, or a sentence."""

import contextlib
import io
import json
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from dpbert_jax.data import TaskData, load_task, tokenize
from dpbert_jax.data.bad_rows import BadRow
from dpbert_jax.data.files import read_rows
from dpbert_jax.errors import UserError

SECONDS = 5  # for one input
TEXTS = ("the cat sat", "a good film, 🙂", "שלום the sun", 'it "was" bad', "on  mat", "ran")
CLASSES = [{"text": text, "label": ("neg", "pos")[i % 2]} for i, text in enumerate(TEXTS)]
SCORES = [{"text": text, "label": i + 0.5} for i, text in enumerate(TEXTS)]
PAIRS = [{**row, "text2": row["text"]} for row in CLASSES]

FRAGMENTS = (
    b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n\n", b"\n",
    b'"', b'""', b'",', b'","', b",", b",,", b"\t", b"\t\t", b" ", b"\x0b\x0c\x1c\x85",
    "\u2028\u202e\u200b\ufffd".encode(), "🙂👩‍👩‍👧".encode(), "مرحبا".encode(), b"\\ud83d",
    b"\\u0000", b"NaN", b"Infinity", b"1e999", b"1e39", b"0.5", b"3", b"-0", b"null", b"true",
    b"[" * 2000, b"9" * 5000, b'{"label": 1, "label": 2}', b"{}", b"[]", b"{", b"}",
    b"\nlabel\n", b"x" * 20_000,
)  # fmt: skip


def seeds() -> dict[str, bytes]:
    """Valid files of every format, by a path inside of a folder; of GLUE, its dev files."""
    parquet_file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(PAIRS), parquet_file)
    both = "\n".join(f"{i}\t{text}\t{text}\t" + "{}" for i, text in enumerate(TEXTS)) + "\n"
    labels = ("entailment", "not_entailment")
    return {
        "classes.csv": _csv(CLASSES, "\r\n"),
        "scores.csv": _csv(SCORES, "\n"),
        "pairs.csv": _csv(PAIRS, "\n"),
        "classes.tsv": _tsv(CLASSES),
        "scores.tsv": _tsv(SCORES),
        "classes.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in CLASSES),
        "scores.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in SCORES),
        "lines.json": b"".join(json.dumps(row).encode() + b"\n" for row in PAIRS),
        "list.json": json.dumps(CLASSES, indent=1, ensure_ascii=False).encode(),
        "data.json": json.dumps({"data": SCORES}).encode(),
        "pairs.parquet": parquet_file.getvalue(),
        "CoLA/dev.tsv": "".join(f"gj04\t{i % 2}\t*\t{t}\n" for i, t in enumerate(TEXTS)).encode(),
        "RTE/dev.tsv": ("index\tsentence1\tsentence2\tlabel\n" + both).format(
            *(labels[i % 2] for i in range(len(TEXTS)))
        ).encode(),
        "STS-B/dev.tsv": ("\ufeffindex\tsentence1\tsentence2\tscore\n" + both).format(
            *(f"{i / 2:.3f}" for i in range(len(TEXTS)))
        ).encode(),
    }  # fmt: skip


def _csv(rows: list[dict[str, Any]], end: str) -> bytes:
    def quoted(value: Any) -> str:
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',"') else text

    return end.join(",".join(map(quoted, line)) for line in [rows[0], *_values(rows), ()]).encode()


def _tsv(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join("\t".join(map(str, line)) for line in [rows[0], *_values(rows), ()]).encode()


def _values(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [list(row.values()) for row in rows]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The file after one to four accidents."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        lines = data.split(b"\n")
        line = rng.randrange(len(lines))
        data = rng.choice(
            [
                lambda d=data, a=at: d[:a] + rng.choice(FRAGMENTS) + d[a:],
                lambda d=data, a=at: d[:a] + rng.choice(FRAGMENTS) + d[a + rng.randint(1, 20) :],
                lambda d=data, a=at: d[:a] + bytes([rng.randrange(256)]) + d[a + 1 :],
                lambda d=data, a=at: d[:a] + d[a + rng.randint(1, 20) :],
                lambda d=data, a=at: d[:a],
                lambda d=lines, n=line: b"\n".join([*d[: n + 1], *d[n:]]),
                lambda d=lines, n=line: b"\n".join([*d[:n], *d[n + 1 :]]),
                lambda d=lines, n=line: b"\n".join([*d[n:], *d[:n]]),
            ]
        )()
    return data


def check(folder: Path, name: str, data: bytes, split: str, tokenizer: Any) -> str:
    """Loads a damaged file by both policies and tokenises it: "whole", "skipped" or "refused".

    Raises AssertionError for anything but an honest outcome. Own files stand in for `split`, beside
    the undamaged file of that name in `folder/"good"`.
    """
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    if path.parent == folder:
        files = {"train": folder / "good" / name, "validation": folder / "good" / name}
        files[split] = path
        source = {f"{key}_file": str(value) for key, value in files.items()}
    else:
        split, source = "validation", {"data_dir": str(path.parent)}
    with _time_limit():
        strict, lenient = _outcome(source, "error"), _outcome(source, "skip")
        # Whatever is refused under "skip" is refused under "error" too, a bad row above all else.
        if isinstance(strict, TaskData):
            assert isinstance(lenient, TaskData) and not lenient.skipped
        if isinstance(lenient, UserError):
            _check_message(strict, path)
            _check_message(lenient, path)
            return "refused"
        if lenient.skipped:
            assert isinstance(strict, BadRow)
            _check_message(strict, path)
        messages = lenient.skipped.get(split, [])
        for message in messages:
            _check_message(BadRow(message), path)
        for examples in lenient.splits.values():
            tokenized = tokenize(examples, tokenizer, 16, folder / "cache")
            assert len(tokenized) == len(examples)
        rows = len(lenient.splits[split]) + len(messages)
    assert rows == _expected_rows(path, data), (rows, _expected_rows(path, data))
    return "skipped" if messages else "whole"


def _outcome(source: dict[str, str], on_bad_row: str) -> TaskData | UserError:
    try:
        return load_task(**source, on_bad_row=on_bad_row)
    except UserError as error:
        return error


def _check_message(error: Any, path: Path) -> None:
    message = str(error)
    assert isinstance(error, UserError) and path.name in message, message
    assert message.endswith(".") and "\n" not in message and len(message) < 1000, message
    if isinstance(error, BadRow):
        place = rf"{re.escape(path.name)} (line [0-9]+|lines [0-9]+ to [0-9]+|row [0-9]+): "
        assert re.match(place, message), message


def _expected_rows(path: Path, data: bytes) -> int:
    """How many rows the file has, counted in another way than the reader's."""
    if path.suffix == ".parquet":
        return parquet.read_metadata(path).num_rows
    text = data.decode("utf-8-sig", "replace")
    if path.name in ("list.json", "data.json"):
        document = json.loads(text)
        return len(document["data"] if isinstance(document, dict) else document)
    lines = text.split("\n")
    if path.suffix in (".json", ".jsonl"):
        return sum(bool(line.strip()) for line in lines)
    if path.parent.name in ("CoLA", "RTE", "STS-B"):  # a blank line is a bad row
        return len(lines) - (not lines[-1]) - (path.parent.name != "CoLA")
    if path.suffix == ".csv" and '"' in text:
        return _covered_rows(path, lines)
    return sum(bool(line.strip("\r")) for line in lines[1:])


def _covered_rows(path: Path, lines: list[str]) -> int:
    """Rows with quotes, which may hold line ends: each line is blank or lies in one row."""
    rows, after = 0, 2
    for place, _ in read_rows(path):
        numbers = [int(number) for number in re.findall("[0-9]+", place.removeprefix(path.name))]
        assert not "".join(lines[after - 1 : numbers[0] - 1]).strip("\r"), place
        rows, after = rows + 1, numbers[-1] + 1
    assert not "".join(lines[after - 1 :]).strip("\r")
    return rows


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise AssertionError(f"an input took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
