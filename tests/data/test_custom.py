import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from dpbert_jax.data.classes import Classes
from dpbert_jax.data.custom import load_files
from dpbert_jax.data.tasks import TaskData
from dpbert_jax.errors import UserError
from dpbert_jax.problem import REGRESSION, SINGLE_LABEL


def load_csv(folder: Path, train: str, validation: str, **more: Any) -> TaskData:
    files = {"train": folder / "train.csv", "validation": folder / "dev.csv"}
    files["train"].write_text(train)
    files["validation"].write_text(validation)
    return load_files(files, **more)


def labels_of(task: TaskData, split: str) -> list[float]:
    labels = task.splits[split].labels
    assert labels is not None
    return labels.tolist()


def test_string_labels_make_sorted_classes(tmp_path: Path):
    task = load_csv(tmp_path, "text,label\nx,pos\ny,neg\n", "text,label\nz, pos \n")
    assert task.spec.name == "custom"
    assert task.spec.labels == ("neg", "pos")
    assert task.spec.text_columns == ("text",)
    assert task.spec.metrics == ("accuracy", "f1", "f1_macro")
    assert task.splits["train"].text_b is None
    assert labels_of(task, "train") == [1, 0]
    assert labels_of(task, "validation") == [1]


def test_integer_labels_sort_as_numbers(tmp_path: Path):
    task = load_csv(tmp_path, "text,label\nx,10\ny,9\nz,-1\n", "text,label\nz,010\n")
    assert task.spec.labels == ("-1", "9", "10")
    assert labels_of(task, "validation") == [2]


def test_fractions_make_regression(tmp_path: Path):
    task = load_csv(tmp_path, "text,label\nx,1\ny,2.5\n", "text,label\nz,3\n")
    assert task.spec.is_regression
    labels = task.splits["validation"].labels
    assert labels is not None and labels.dtype == np.float32 and labels.tolist() == [3.0]


def test_a_bin_named_3plus_makes_strings_of_all(tmp_path: Path):
    task = load_csv(tmp_path, "text,label\nx,1\ny,2\nz,3+\n", "text,label\nz,3+\n")
    assert task.spec.labels == ("1", "2", "3+")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([True, False], ("False", "True")),
        ([2, 10], ("2", "10")),
        (["2", "10"], ("2", "10")),
        (["1.5", "0.5"], None),
        ([0.5, 1], None),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_typed_files_say_what_their_labels_are(
    tmp_path: Path, values: list[Any], names: tuple[str, ...] | None, suffix: str
):
    path = tmp_path / f"train{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps([{"text": "x", "label": value} for value in values]))
    else:
        parquet.write_table(pyarrow.table({"text": ["x"] * 2, "label": values}), path)
    task = load_files({"train": path, "validation": path})
    assert task.spec.labels == names
    if names is not None:
        assert [names[label] for label in map(int, labels_of(task, "train"))] == [
            str(value) for value in values
        ]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("sentence1,sentence2,extra,label", ("sentence1", "sentence2")),
        ("extra,sentence2,label,sentence1", ("sentence1", "sentence2")),
        ("idx,premise,label,hypothesis", ("premise", "hypothesis")),
        ("id,index,label,review", ("review",)),
        ("first,second,label", ("first", "second")),
    ],
)
def test_text_columns(tmp_path: Path, header: str, expected: tuple[str, ...]):
    lines = [header] + [
        ",".join(str(n) if name == "label" else f"{name}!" for name in header.split(","))
        for n in range(2)
    ]
    task = load_csv(tmp_path, "\n".join(lines), "\n".join(lines))
    assert task.spec.text_columns == expected
    train = task.splits["train"]
    assert train.text_a[0] == f"{expected[0]}!"
    assert (train.text_b is None) == (len(expected) == 1)


def test_what_was_chosen_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "dpbert_jax")
    content = "text,other,genre,label\nx,y,news,a\nx,y,news,b\n"
    load_csv(tmp_path, content, content)
    assert caplog.messages == [
        "train.csv: text 'text', label 'label'; not read: ['other', 'genre'].",
        "dev.csv: text 'text', label 'label'; not read: ['other', 'genre'].",
        "Labels: single_label_classification, 2 classes ['a', 'b'].",
    ]


def test_a_test_file_may_be_unlabelled(tmp_path: Path):
    train = tmp_path / "train.csv"
    train.write_text("text,label\nx,a\ny,b\n")
    test = tmp_path / "test.csv"
    test.write_text("text\nz\n")
    task = load_files({"train": train, "validation": train, "test": test})
    assert task.splits["test"].labels is None


def test_known_labels_stand_in_for_the_training_file(tmp_path: Path):
    path = tmp_path / "dev.csv"
    path.write_text("text,label\nx,pos\n")
    model = Classes(SINGLE_LABEL, ("neg", "pos"), of_model=True)
    task = load_files({"validation": path}, model=model)
    assert labels_of(task, "validation") == [1]
    path.write_text("text,label\nx,3\n")  # whole scores, and no classes
    assert load_files({"validation": path}, model=Classes(REGRESSION)).spec.is_regression
    with pytest.raises(UserError, match="give --train_file"):
        path.write_text("text,label\nx,pos\ny,neg\n")
        load_files({"validation": path})


GOOD = "text,label\nx,neg\ny,pos\n"


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (GOOD, "text,label\nx,neg\ny,postive\n",
         r"^dev\.csv line 3: label 'postive' is not one of \['neg', 'pos'\]\.$"),
        (GOOD, "text,label\nx,\n", r"^dev\.csv line 2: the label is missing"),
        (GOOD, "text,label\n  ,neg\n", r"^dev\.csv line 2: column 'text' is empty"),
        (GOOD, "words,label\nx,neg\n",
         r"dev\.csv: there is no column 'text', which the training data has, among \['wo"),
        (GOOD, "text\nx\n", r"dev\.csv: there is no column 'label'"),
        (GOOD, "text,label\n", r"dev\.csv: the file has no rows"),
        ("label\na\nb\n", GOOD, r"train\.csv: no text column"),
        ("text,label\nx,a\n", GOOD, "all labels are 'a'"),
        ("text,label\nx,0.5\ny,l.5\n", GOOD, r"^train\.csv line 3: label 'l\.5' is of another"),
        ("text,label\nx,0.5\n", GOOD, r"^dev\.csv line 2: label 'neg' is not a number"),
        ("text,label\nx,0\ny,1\n", "text,label\nx,0.5\n", r"label '0\.5' is not one of"),
    ],
)  # fmt: skip
def test_errors_name_file_and_line(tmp_path: Path, train: str, validation: str, message: str):
    with pytest.raises(UserError, match=message):
        load_csv(tmp_path, train, validation)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": null, "label": 1}', "column 'text' holds None, which is not text"),
        ('{"text": 3, "label": 1}', "column 'text' holds 3"),
        ('{"label": 1}', "there is no column 'text'"),
        ('{"text": "x"}', "there is no column 'label'"),
        ('{"text": "x", "label": null}', "the label is missing"),
        ('{"text": "x", "label": [1]}', r"label \[1\] is of another kind \(list\)"),
        ('{"text": "x", "label": NaN}', "label nan is not a finite number"),
        ('{"text": "x", "label": "1"}', "is of another kind"),
        ('{"text": "x", "label": true}', "is of another kind"),
        ('{"text": "\\ud83d", "label": 1}', "half a surrogate pair"),
    ],
)
def test_errors_of_typed_rows(tmp_path: Path, row: str, message: str):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "x", "label": 0}\n' + row + "\n")
    with pytest.raises(UserError, match=r"^train\.jsonl line 2: .*" + message):
        load_files({"train": path, "validation": path})
