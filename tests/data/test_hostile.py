"""Hostile and messy files: every row is used, or named with its line, or the file is refused."""

import csv
import io
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from fuzzing import check, damaged, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from dpbert_jax.data import TaskData, load_task, tokenize
from dpbert_jax.data.bad_rows import BadRow
from dpbert_jax.errors import UserError

HONEST = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Whatever is text at all; a line end where the format can hold one.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)
ROWS = st.lists(st.tuples(TEXT.filter(str.strip), st.sampled_from(["neg", "pos"])), max_size=6)
BOTH = [("x", "neg"), ("y", "pos")]


def write(path: Path, rows: list[tuple[Any, Any]]) -> None:
    """(text, label) rows in the format that the name ends in."""
    records = [{"text": text, "label": label} for text, label in rows]
    if path.suffix == ".csv":
        content = io.StringIO()
        csv.writer(content).writerows([("text", "label"), *rows])
        path.write_bytes(content.getvalue().encode())
    elif path.suffix == ".tsv":
        path.write_bytes("".join(f"{a}\t{b}\n" for a, b in [("text", "label"), *rows]).encode())
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(records), path)


def load(train: Path, validation: Path | None = None, on_bad_row: str = "error") -> TaskData:
    files = {"train_file": str(train), "validation_file": str(validation or train)}
    return load_task(**files, on_bad_row=on_bad_row)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
@HONEST
@given(rows=ROWS)
def test_what_was_written_is_read(
    suffix: str, rows: list[tuple[str, str]], tmp_path: Path, tiny_tokenizer: Any
):
    if suffix == "tsv":
        rows = [(text, label) for text, label in rows if not set(text) & set("\t\n")]
    rows = BOTH + rows
    write(tmp_path / f"rows.{suffix}", rows)
    task = load(tmp_path / f"rows.{suffix}")
    train = task.splits["train"]
    assert train.labels is not None and task.spec.labels is not None
    names = [task.spec.labels[label] for label in train.labels]
    assert list(zip(train.text_a, names, strict=True)) == rows
    assert len(tokenize(train, tiny_tokenizer, 16, tmp_path / "cache")) == len(rows)


BROKEN_LINES = {
    "csv": [b"a\xff,neg", b"a\0,neg", b",neg", b"x,", b"x", b"x,neg,z", b'"x"y,neg', b"x\ry,neg"],
    "tsv": [b"a\xff\tneg", b"a\0\tneg", b"\tneg", b"x\t", b"x", b"x\tneg\tz"],
    "jsonl": [
        b'{"text": "\xff", "label": "neg"}', b'{"text": "\\u0000", "label": "neg"}', b"{}", b"[1]",
        b'{"text": "\\ud83d", "label": "neg"}', b'{"text": "", "label": "neg"}', b'{"text": "x"}',
        b'{"text": "x", "label": null}', b'{"text": "x", "label": [1]}', b'{"text": ', b"nonsense",
        b'{"text": "x", "label": "neg", "label": "pos"}', b'{"text": 1, "label": "neg"}',
        b'{"text": "x", "label": 1}', b'{"text": "x", "label": true}', b"[" * 9999, b"9" * 9999,
    ],
}  # fmt: skip


@pytest.mark.parametrize("suffix", BROKEN_LINES)
@HONEST
@given(seed=st.integers(0, 2**32))
def test_skip_leaves_out_the_bad_lines_and_lists_each(suffix: str, seed: int, tmp_path: Path):
    rng = random.Random(seed)
    good = tmp_path / f"good.{suffix}"
    write(good, BOTH * 3)
    header, *lines = [b""] * (suffix == "jsonl") + good.read_bytes().splitlines()
    faults = {rng.randrange(20): rng.choice(BROKEN_LINES[suffix]) for _ in range(4)}
    numbers, kept = [], 0
    content = [header]
    for number in range(20):
        if number in faults:
            content.append(faults[number])
            numbers.append(number + 2)
        else:
            content.append(lines[kept % len(lines)])
            kept += 1
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(b"\n".join(content) + b"\n")
    task = load(path, on_bad_row="skip")
    places = [message.split(":")[0] for message in task.skipped["train"]]
    assert sorted(places) == sorted(f"bad.{suffix} line {number}" for number in numbers)
    assert len(task.splits["train"]) == kept
    with pytest.raises(BadRow):
        load(path)


GOOD = "text,label\nx,neg\ny,pos\n"
SCORED = "text,label\nx,1.5\ny,1\n"
UNKNOWN = "is not one of ['neg', 'pos']."
KIND = "is of another kind (string) than '1.5' (fraction); all labels must be of one kind."


@pytest.mark.parametrize(
    ("train", "validation", "skipped"),
    [
        (GOOD, GOOD + "z,postive\n", f"dev.csv line 4: label 'postive' {UNKNOWN}"),
        (GOOD, GOOD + 'z,"a\nx,neg"\n', f"dev.csv lines 4 to 5: label 'a\\nx,neg' {UNKNOWN}"),
        (SCORED + "z,nan\n", SCORED, f"train.csv line 4: label 'nan' {KIND}"),
        ("text,label\nz,n/a\nx,1.5\ny,1\n", SCORED, f"train.csv line 2: label 'n/a' {KIND}"),
        (SCORED + "z,1e39\n", SCORED, f"train.csv line 4: label '1e39' {KIND}"),
        (SCORED, SCORED + "z,inf\n",
         "dev.csv line 4: label 'inf' is not a number, as other labels are."),
    ],
)  # fmt: skip
def test_bad_labels_are_skipped(tmp_path: Path, train: str, validation: str, skipped: str):
    paths = [tmp_path / "train.csv", tmp_path / "dev.csv"]
    for path, content in zip(paths, (train, validation), strict=True):
        path.write_text(content)
    task = load(*paths, on_bad_row="skip")
    assert [message for messages in task.skipped.values() for message in messages] == [skipped]
    with pytest.raises(BadRow) as caught:
        load(*paths)
    assert str(caught.value) == skipped


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nx,a\n", r"all labels are 'a'"),
        ("text,label\nx,a\n,b\n", r"all labels are 'a'"),
        ("text,label\n,a\n,b\n", r"none of its 2 rows can be used\. bad\.csv line 2: column"),
        ("words\nx\n", r"bad\.csv: there is no column 'label' among \['words'\]; name"),
        ("text,label,label\nx,a,a\n", r"^bad\.csv line 1: column 'label' appears twice"),
        ('text,label\n"x,a\ny,b\nz,a\n', r"^bad\.csv lines 2 to 4: a quoted field is not closed"),
    ],
)  # fmt: skip
def test_what_skipping_cannot_mend(tmp_path: Path, content: str, message: str):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "bad.csv", on_bad_row="skip")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_text_of_ten_megabytes_is_read_whole(tmp_path: Path, suffix: str):
    text = "the cat 🙂 " * 900_000
    write(tmp_path / f"long.{suffix}", [*BOTH, (text, "pos")])
    limit = csv.field_size_limit()
    assert load(tmp_path / f"long.{suffix}").splits["train"].text_a[2] == text
    assert csv.field_size_limit() == limit


def test_parquet_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path):
    texts = pyarrow.array([b"good", b"\xff", b"fine"]).view(pyarrow.string())
    table = pyarrow.table({"text": texts, "label": ["a", "a", "b"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    task = load(tmp_path / "a.parquet", on_bad_row="skip")
    assert task.splits["train"].text_a == ["good", "fine"]
    assert task.skipped["train"][0].startswith("a.parquet row 2: column 'text' cannot be read (")


def test_skips_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "a.csv").write_text(GOOD + ",pos\n" * 5)
    load(tmp_path / "a.csv", on_bad_row="skip")
    assert "train: 5 of 7 rows skipped.\n  a.csv line 4: column 'text' is empty" in caplog.text


def test_another_policy_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text(GOOD)
    with pytest.raises(UserError, match=r"--on_bad_row is 'warn', but must be one of"):
        load(tmp_path / "a.csv", on_bad_row="warn")


def fuzz(folder: Path, tokenizer: Any, inputs: int, seed: int) -> Counter[str]:
    """Outcomes of so many damaged files; an input that fails is told by its number and seed."""
    rng = random.Random(seed)
    files = seeds()
    (folder / "good").mkdir()
    for name, data in files.items():
        (folder / "good" / Path(name).name).write_bytes(data)
    outcomes: Counter[str] = Counter()
    for number in range(inputs):
        name = rng.choice(list(files))
        data, split = damaged(files[name], rng), rng.choice(["train", "validation"])
        try:
            outcomes[check(folder, name, data, split, tokenizer)] += 1
        except Exception as error:
            error.add_note(f"input {number} of seed {seed}: {name} as {split}, {data[:2000]!r}")
            raise
    return outcomes


def test_damaged_files(tmp_path: Path, tiny_tokenizer: Any):
    outcomes = fuzz(tmp_path, tiny_tokenizer, 300, seed=0)
    assert min(outcomes[name] for name in ("whole", "skipped", "refused")) > 20


@pytest.mark.slow
def test_twenty_thousand_damaged_files(tmp_path: Path, tiny_tokenizer: Any):
    started = time.monotonic()
    outcomes = fuzz(tmp_path, tiny_tokenizer, 20_000, seed=1)
    print(f"{outcomes.total()} damaged files in {time.monotonic() - started:.0f} s: {outcomes}")
    assert outcomes.total() == 20_000
