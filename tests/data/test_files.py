import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from dpbert_jax.data.bad_rows import BadRow
from dpbert_jax.data.files import read_rows, text_lines
from dpbert_jax.errors import UserError


def rows(path: Path, content: str | bytes) -> list[tuple[str, dict[str, Any]]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = []
    for place, row in read_rows(path):
        if isinstance(row, BadRow):
            raise row
        found.append((place, row))
    return found


def test_csv_has_quotes_and_line_numbers_are_physical(tmp_path: Path):
    content = '\ufefftext,label\n"two\nlines, one ""row""",yes\n\nlast,no\n'
    assert rows(tmp_path / "a.csv", content) == [
        ("a.csv lines 2 to 3", {"text": 'two\nlines, one "row"', "label": "yes"}),
        ("a.csv line 5", {"text": "last", "label": "no"}),
    ]


def test_tsv_has_no_quotes(tmp_path: Path):
    content = 'text\tlabel\r\n"an open quote\tyes\r\nx\u2028y\x0cz\tno'
    assert rows(tmp_path / "a.tsv", content) == [
        ("a.tsv line 2", {"text": '"an open quote', "label": "yes"}),
        ("a.tsv line 3", {"text": "x\u2028y\x0cz", "label": "no"}),
    ]


ROW = {"text": "a cat", "label": 1}


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n", "a.jsonl line 3"),
        ("a.json", f"{json.dumps(ROW)}\n{json.dumps(ROW)}", "a.json line 2"),
        ("a.json", json.dumps([ROW, ROW]), "a.json row 2"),
        ("a.json", json.dumps([ROW, ROW], indent=1), "a.json row 2"),
        ("a.json", json.dumps({"data": [ROW, ROW]}), "a.json row 2"),
        ("a.json", json.dumps({"data": [ROW, ROW]}, indent=1), "a.json row 2"),
    ],
)
def test_the_three_forms_of_json(tmp_path: Path, name: str, content: str, place: str):
    found = rows(tmp_path / name, content)
    assert [row for _, row in found] == [ROW, ROW]
    assert found[1][0] == place


def test_parquet_keeps_types(tmp_path: Path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0.5, None]}), path)
    assert list(read_rows(path)) == [
        ("a.parquet row 1", {"text": "a", "label": 0.5}),
        ("a.parquet row 2", {"text": "b", "label": None}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nx,1\ny\n", r"^a\.csv line 3: 1 columns where the header has 2"),
        ("a.csv", "text,label\nx,1,2\n", r"^a\.csv line 2: 3 columns"),
        ("a.csv", 'text,label\nx,1\n"y,1\n', r"^a\.csv line 3: unexpected end of data"),
        ("a.csv", 'text,label\n"y,1\nx,1\n', r"^a\.csv lines 2 to 3: a quoted field is not closed"),
        (
            "a.csv",
            'text,label\n"y,1\n"x,1\n',
            r"^a\.csv lines 2 to 3: a quoted field is not closed",
        ),
        ("a.csv", 'text,label\n"a "b" c",1\n', r"^a\.csv line 2: ',' expected after '\"'; mend"),
        ("a.csv", "text,label\nx\ry,1\n", r"^a\.csv line 2: new-line character seen in unquoted"),
        ("a.csv", "text,label\nx,1\ny\0,1\n", r"^a\.csv line 3: byte 2 is NUL"),
        (
            "a.csv",
            "text,label\nx,1\n".encode("utf-16"),
            r"^a\.csv line 1: byte 4 is NUL",
        ),
        ("a.csv", "text,text\nx,1\n", r"^a\.csv line 1: column 'text' appears twice"),
        ("a.csv", b"text,label\nx,1\n\xff,1\n", r"^a\.csv line 3: byte 1 is not valid UTF-8"),
        ("a.tsv", "text\tlabel\nx\t1\tz\n", r"^a\.tsv line 2: 3 columns"),
        ("a.csv", "", "the file is empty"),
        ("a.parquet", "", "the file is empty"),
        ("a.parquet", "no parquet", "not a readable parquet file"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"^a\.jsonl line 2: not valid JSON"),
        ("a.json", '[\n{"a": 1},\n{"a" 1}]', r"^a\.json line 3: not valid JSON"),
        ("a.jsonl", '{"a": 1}\n[2]\n', r"^a\.jsonl line 2: expected an object"),
        ("a.jsonl", "[" * 100_000, r"^a\.jsonl line 1: not valid JSON \(it is nested too deep"),
        ("a.jsonl", "9" * 5000, r"^a\.jsonl line 1: not valid JSON \(a number has too many digits"),
        ("a.jsonl", '{"a": 1, "a": 2}', r"^a\.jsonl line 1: column 'a' appears twice"),
        ("a.json", '[{"a": 1, "a": 2}]', r"^a\.json row 1: column 'a' appears twice"),
        ("a.json", "[1]", r"^a\.json row 1: expected an object"),
        ("a.json", '{\n"rows": []}', "expected a list of objects"),
        ("a.txt", "text\n", r"must end in one of \.csv, \.tsv"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, content: str | bytes, message: str):
    with pytest.raises(UserError, match=message):
        rows(tmp_path / name, content)


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=f"{name}: there is no such file"):
        list(read_rows(tmp_path / name))


def test_lines_end_at_line_feeds_only(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\x85b\x1cc\n\u2029\n".encode())
    assert list(text_lines(path, [])) == ["a\x85b\x1cc\n", "\u2029\n"]
