"""Which columns are texts and labels: files as users have them, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from dpbert_jax.data import Columns
from dpbert_jax.data.columns import choose_columns
from dpbert_jax.data.custom import load_files
from dpbert_jax.errors import UserError

PHRASES = ("a good film", "the cat sat", "it was bad")
VALUES = {
    "": "012", "Unnamed: 0": "012", "__index_level_0__": PHRASES, "n": ("1", "2.5", "-3"),
    "price": ("1,200", "3 %", "4.5"), "when": ("2024-03-01", "2024-03-01 10:00", "2024-03-01T1:0Z"),
    "id": ("a1", "b2", "c3"), "review_id": ("x-1", "x-2", "x-3"), "pairID": ("p q", "p r", "p s"),
    "date": ("1 May", "2 May", "3 May"), "source": ("shop", "web", "shop"), "channel": "abc",
    "label": "010", "Label": "010", "class": "010", "score": "010", "label_text": ("n", "yes", "a"),
}  # fmt: skip


def choose(
    header: str,
    flags: Columns | None = None,
    settled: Columns | None = None,
    needs_label: bool = True,
    **values: Any,
) -> tuple[str | None, ...]:
    """Of a file with three rows; columns that have no values above hold phrases."""
    names = header.split(",")
    columns = [values.get(name, VALUES.get(name, PHRASES)) for name in names]
    sample = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    chosen = choose_columns(Path("a.csv"), sample, flags or Columns(), settled, needs_label)
    return (*chosen.texts, chosen.label)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (",text,label", "text label"),
        (",question,answer,label", "question answer label"),
        ("Unnamed: 0,words,label", "words label"),
        ("__index_level_0__,words,label", "words label"),
        ("label,when,n,price,words", "words label"),
        ("id,review_id,pairID,words,label", "words label"),
        ("text,label,source,date", "text label"),
        ("source,date,words,label", "words label"),
        ("words,label,label_text", "words label"),
        ("first,second,label", "first second label"),
        ("answer,label,question", "question answer label"),
        ("TEXT,Label", "TEXT Label"),
        (" Text ,label", " Text  label"),
        ("\ufefftext,label", "\ufefftext label"),
        ("Sentence 2,Sentence_1,label", "Sentence_1 Sentence 2 label"),
        ("text_a,text-B,label", "text_a text-B label"),
        ("tweet,notes,remarks,label", "tweet label"),
        ("text,class", "text class"),
        ("text,label,score,class", "text label"),
    ],
)
def test_chosen(header: str, expected: str):
    assert " ".join(name or "-" for name in choose(header)) == expected


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("title,review,label", r"any of \['title', 'review'\].* --text_column_name.*_pair_column"),
        ("title,body,label", r"any of \['title', 'body'\]"),
        ("question,context,answer,label", r"any of \['question', 'context', 'answer'\]"),
        ("text,Text,label", r"any of \['text', 'Text'\]"),
        ("one,two,three,label", r"any of \['one', 'two', 'three'\]"),
        ("words,channel,label", r"any of \['words', 'channel'\]"),  # or one of single words
        (",n,when,label", r"no text column in \['', 'n', 'when'\]"),
        ("text,score,class", r"labels could be any of \['score', 'class'\].*--label_column_name"),
        ("text,label,Label", r"labels could be any of \['label', 'Label'\]"),
        ("text,other", r"no column 'label' among \['text', 'other'\]; .*--label_column_name"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(header: str, message: str):
    with pytest.raises(UserError, match=r"^a\.csv: .*" + message):
        choose(header)


def test_numbers_under_a_usual_name_give_way_to_words():
    assert choose("review,text,label", review="512") == ("text", "label")
    assert choose("text,n,label", text="512") == ("text", "label")
    with pytest.raises(UserError, match=r"any of \['review', 'words'\]"):
        choose("review,words,label", review="512")
    assert choose("sentence1,sentence2,label", sentence2="512") == (
        "sentence1",
        "sentence2",
        "label",
    )


def test_typed_values_that_are_no_strings_are_no_texts():
    nested = [{"en": "a"}] * 3
    assert choose("meta,tags,words,label", meta=nested, tags=[["a"]] * 3) == ("words", "label")


def test_flags_name_columns_in_any_case():
    flags = Columns("REVIEW", None, "stars")
    assert choose("title,review,Stars", flags) == ("review", "Stars")
    assert choose("title,body,label", Columns("title", "body")) == ("title", "body", "label")
    assert choose("text,Text,label", Columns("Text")) == ("Text", "label")
    for flags, message in (
        (Columns("body"), r"no column 'body', which --text_column_name names, among \['title'"),
        (Columns(None, "title"), "goes with --text_column_name"),
        (Columns("title", "title"), "'title' is named as two things"),
        (Columns(None, None, "stars"), "no column 'stars', which --label_column_name names"),
    ):
        with pytest.raises(UserError, match=message):
            choose("title,label", flags)


def test_later_files_are_read_by_the_columns_of_the_training_file():
    pair = Columns("question", "answer", "label")
    assert choose("label,when,Answer,question", None, pair) == ("question", "Answer", "label")
    assert choose("timestamp,text,label", None, Columns("text", None, "label")) == ("text", "label")
    with pytest.raises(
        UserError, match=r"no column 'answer', which the training data has, .*; --text_pair_column"
    ):
        choose("question,text,label", None, pair)
    assert choose("question,text,label", Columns(None, "text"), pair)[1] == "text"
    with pytest.raises(UserError, match="trained on single texts, column 'question'"):
        choose("question,text,label", Columns(None, "text"), Columns("question", None, "label"))


def test_a_file_may_lack_labels_where_that_is_allowed():
    run = Columns("text", None, "label")
    assert choose("text,class", None, run, needs_label=False) == ("text", None)
    assert choose("text", None, None, needs_label=False) == ("text", None)
    assert choose("text,Label", None, run, needs_label=False) == ("text", "Label")
    with pytest.raises(UserError, match="no column 'label'"):
        choose("text,class", None, run)
    with pytest.raises(UserError, match="no column 'stars', which --label_column_name names"):
        choose("text", Columns(label="stars"), run, needs_label=False)


def test_what_few_rows_of_a_json_file_have_is_not_chosen(tmp_path: Path):
    rows = [{"words": text, "label": text} for text in PHRASES]
    rows[1]["text"] = rows[2]["note"] = "now and then"
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_files({"train": path}).spec.text_columns == ("words",)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_index_that_pandas_wrote_is_no_text(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    frame = pandas.DataFrame({"words": PHRASES, "label": [0, 1, 1]}, index=[7, 8, 9])
    getattr(frame, f"to_{suffix}")(path)
    assert load_files({"train": path}).splits["train"].text_a == list(PHRASES)


def test_numbers_are_told_from_texts_by_many_rows(tmp_path: Path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["code", "words", "label"])
        writer.writerows([["n/a" if row < 3 else row, "some words", row % 2] for row in range(99)])
    assert load_files({"train": path}).spec.text_columns == ("words",)
