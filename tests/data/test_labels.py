"""What labels are read as, unasked and as --problem_type says."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpbert_jax.data import Classes, TaskData
from dpbert_jax.data.bad_rows import BadRow
from dpbert_jax.data.custom import load_files
from dpbert_jax.data.labels import FEW_CLASSES
from dpbert_jax.errors import UserError
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, SINGLE_LABEL

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"


def load(folder: Path, labels: list[Any], suffix: str = "jsonl", **more: Any) -> TaskData:
    """A training file with these labels; of csv, as the cells stand."""
    path = folder / f"train.{suffix}"
    if suffix == "jsonl":
        rows = [json.dumps({"text": "x", "label": label}) for label in labels]
        path.write_text("\n".join(rows))
    else:
        cells = ['"' + str(label).replace('"', '""') + '"' for label in labels]
        path.write_text("\n".join(["text,label", *(f"x,{cell}" for cell in cells)]))
    return load_files({"train": path}, **more)


def read(task: TaskData) -> tuple[str, tuple[str, ...] | None, Any]:
    labels = task.splits["train"].labels
    assert labels is not None
    return task.spec.problem_type, task.spec.labels, labels.tolist()


MANY = [float(number) for number in range(FEW_CLASSES + 1)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("labels", "expected", "warning"),
    [
        ([0, 1], (SINGLE_LABEL, ("0", "1"), [0, 1]), None),
        ([0.0, 1.0], (SINGLE_LABEL, ("0", "1"), [0, 1]), "whole numbers .* read as classes.*regre"),
        ([2.0, 10.0, 2.0], (SINGLE_LABEL, ("2", "10"), [0, 1, 0]), "--problem_type regression"),
        (["0.0", "1.0"], (SINGLE_LABEL, ("0", "1"), [0, 1]), "--problem_type regression"),
        (MANY, (REGRESSION, None, MANY), "11 different ones: read as scores.*single_label_class"),
        ([0.5, 1.0], (REGRESSION, None, [0.5, 1.0]), None),
        (list(map(int, MANY)), (SINGLE_LABEL, tuple(map(str, range(11))), list(range(11))),
         "whole numbers, such as .*, 11 different ones: read as classes.* --problem_type regress"),
        (["a", "b"], (SINGLE_LABEL, ("a", "b"), [0, 1]), None),
    ],
)  # fmt: skip
def test_numbers_and_names(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    suffix: str,
    labels: list[Any],
    expected: Any,
    warning: str | None,
):
    assert read(load(tmp_path, labels, suffix)) == expected
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (warning is not None)
    assert re.search(warning or "", " ".join(warnings))


def test_strings_that_are_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert read(load(tmp_path, ["0.5", "2"]))[0] == REGRESSION
    assert "numbers written as strings" in caplog.text
    with pytest.raises(BadRow, match=r"line 3: label 'n/a' is of another kind"):
        load(tmp_path, ["0.5", "2", "n/a"])
    asked = load(tmp_path, ["0.5", "2", "n/a"], problem_type=SINGLE_LABEL)
    assert asked.spec.labels == ("0.5", "2", "n/a")


def test_the_problem_type_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert read(load(tmp_path, [0, 1], problem_type=REGRESSION)) == (REGRESSION, None, [0, 1])
    assert read(load(tmp_path, ["3", "1.5"], problem_type=REGRESSION))[2] == [3, 1.5]
    assert read(load(tmp_path, [0.5, 1.0], problem_type=SINGLE_LABEL))[1] == ("0.5", "1")
    assert read(load(tmp_path, MANY, problem_type=SINGLE_LABEL))[1] == tuple(map(str, range(11)))
    assert "WARNING" not in {record.levelname for record in caplog.records}  # nothing was guessed
    for problem, label, message in (
        (REGRESSION, "bad", "'bad' is not a number"),
        (REGRESSION, True, "True is not a number"),
        (SINGLE_LABEL, [1], r"\[1\] is not one class"),
        (MULTI_LABEL, 3, "3 is not a list of classes"),
    ):
        with pytest.raises(BadRow, match=rf"^train\.jsonl line 2: label {message}"):
            load(tmp_path, [[0, 1] if problem == MULTI_LABEL else 1, label], problem_type=problem)
    with pytest.raises(UserError, match=r"--problem_type ranking is not one of"):
        load(tmp_path, [0, 1], problem_type="ranking")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_lists_of_names(tmp_path: Path, suffix: str):
    labels: list[Any] = [["toxic", "insult"], [], ["threat"]]
    for spelled in (labels, [json.dumps(label) for label in labels], list(map(str, labels))):
        task = load(tmp_path, spelled, suffix)
        assert read(task) == (
            MULTI_LABEL,
            ("insult", "threat", "toxic"),
            [[1, 0, 1], [0, 0, 0], [0, 1, 0]],
        )
        encoded = task.splits["train"].labels
        assert encoded is not None and encoded.dtype == np.float32


def test_rows_of_zeros_and_ones(tmp_path: Path):
    task = load(tmp_path, [[0, 1, True], [False, 0, 1.0]])
    assert read(task) == (MULTI_LABEL, ("0", "1", "2"), [[0, 1, 1], [0, 0, 1]])
    assert task.spec.metrics == ("f1_micro", "f1_macro")
    taken = task.splits["train"].take([1]).labels
    assert taken is not None and taken.tolist() == [[0, 0, 1]]


def test_names_with_commas_in_a_cell(tmp_path: Path):
    task = load(tmp_path, ["toxic, insult", "toxic", "[]"], "csv", problem_type=MULTI_LABEL)
    assert read(task)[1:] == (("insult", "toxic"), [[1, 1], [0, 1], [0, 0]])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0, 1], "has 2 entries, but there are 3 classes"),
        ([], "has 0 entries"),
        ([0, 1, 2], "no list of names, nor one of 0 and 1"),
        (["a"], r"label 'a' is not one of \['0', '1', '2'\]"),
        ([0, None, 1], "the label is missing"),
        ([0, [1], 1], r"label \[1\] is not a string"),
    ],
)
def test_bad_lists(tmp_path: Path, label: Any, message: str):
    rows = [[0, 1, 1], [1, 0, 0], label]
    with pytest.raises(BadRow, match=r"^train\.jsonl line 3: .*" + message):
        load(tmp_path, rows)
    task = load(tmp_path, rows, on_bad_row="skip")
    assert len(task.splits["train"]) == 2 and len(task.skipped["train"]) == 1


def test_bad_lists_of_names(tmp_path: Path):
    for label, message in (
        (["a", "a"], "names 'a' twice"),
        ([0, 1], "does not name its classes"),
        ("0,1", r"could be names or a row of 0 and 1; write the names as \[\"0\"\]"),
        ("[a", "is not valid JSON"),
    ):
        with pytest.raises(BadRow, match=message):
            load(tmp_path, [["a"], ["b", "a"], label], problem_type=MULTI_LABEL)
    path = tmp_path / "dev.jsonl"
    path.write_text('{"text": "x", "label": ["A"]}\n{"text": "x", "label": ["c"]}\n')
    load(tmp_path, [["a"], ["b"]])
    files = {"train": tmp_path / "train.jsonl", "validation": path}
    with pytest.raises(BadRow, match=r"dev\.jsonl line 2: label 'c' is not one of \['a', 'b'\]"):
        load_files(files)
    labels = load_files(files, on_bad_row="skip").splits["validation"].labels
    assert labels is not None and labels.tolist() == [[1, 0]]


def test_lists_for_a_trained_model(tmp_path: Path):
    model = Classes(MULTI_LABEL, ("toxic", "insult"), of_model=True)
    load(tmp_path, [["Insult"], []], model=model)
    assert read(load(tmp_path, [["Insult"], []], model=model))[1:] == (
        ("toxic", "insult"),
        [[0, 1], [0, 0]],
    )
    assert read(load(tmp_path, [[0, 1], [1, 1]], model=model))[2] == [[0, 1], [1, 1]]
    with pytest.raises(UserError, match=r"classes \['spam'\], the model \['toxic', 'insult'\]"):
        load(tmp_path, [["spam"], []], model=model)


@pytest.mark.parametrize(
    ("case", "problem_type", "classes"),
    [
        ("float_labels", SINGLE_LABEL, ("0", "1")),
        ("strscore", REGRESSION, None),
        ("multilabel", MULTI_LABEL, ("0", "1", "2")),
        ("extra", SINGLE_LABEL, ("negative", "positive")),
        ("leak", SINGLE_LABEL, ("negative", "positive")),
    ],
)
def test_files_as_users_have_them(case: str, problem_type: str, classes: Any):
    if not CASES.is_dir():
        pytest.skip(f"no such files in {CASES}")
    train, dev = sorted(CASES.glob(f"{case}_[td]*"), reverse=True)
    task = load_files({"train": train, "validation": dev})
    assert (task.spec.problem_type, task.spec.labels) == (problem_type, classes)
    assert "text" in task.spec.text_columns or task.spec.text_columns == ("sentence1", "sentence2")
    assert task.splits["train"].text_a[0].count(" ") > 3
