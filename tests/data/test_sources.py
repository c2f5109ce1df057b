from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpbert_jax.data import Classes, Columns
from dpbert_jax.data.sources import TASK_NAMES, load_task
from dpbert_jax.errors import UserError
from dpbert_jax.problem import SINGLE_LABEL

RTE = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n"


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    for name in ("glue/RTE", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "dev.tsv").write_text(RTE)
    return tmp_path / "glue"


@pytest.mark.parametrize(
    ("folder", "task_name"),
    [("RTE", None), ("RTE", "rte"), (".", "rte"), ("../elsewhere", "RTE")],
)
def test_a_glue_folder_or_the_one_above_it(glue: Path, folder: str, task_name: str | None):
    data = load_task(task_name=task_name, data_dir=str(glue / folder))
    assert data.spec.name == "rte"
    assert len(data.splits["validation"]) == 1


def test_own_files(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nx,a\ny,b\n")
    data = load_task(train_file=str(path), validation_file=str(path))
    assert data.spec.labels == ("a", "b")
    assert set(data.splits) == {"train", "validation"}
    data = load_task(validation_file=str(path), model=Classes(SINGLE_LABEL, ("b", "a")))
    assert data.spec.labels == ("b", "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "No data: give --task_name"),
        ({"task_name": "ret"}, "Task 'ret' is not one of cola, mnli, .*docstrings"),
        ({"task_name": "rte", "train_file": "a.csv", "validation_file": "b.csv"}, "two sources"),
        ({"data_dir": "RTE", "validation_file": "b.csv"}, "two sources"),
        ({"train_file": "a.csv"}, "need --validation_file"),
        ({"train_file": "a.csv", "validation_file": "b.csv"}, "a.csv: there is no such file"),
        ({"task_name": "docstrings", "data_dir": "RTE"}, "has no part in the built-in"),
        ({"data_dir": "nowhere"}, "nowhere: there is no such folder"),
        ({"data_dir": "."}, "does not tell the task: give --task_name"),
        ({"data_dir": "RTE", "task_name": "cola"}, "contradicts --data_dir RTE, which is of rte"),
        ({"data_dir": ".", "task_name": "cola"}, r"there is no dev\.tsv, which cola needs"),
        ({"task_name": "rte", "columns": Columns(label="a")}, "--label_column_name a is for one's"),
        (
            {"task_name": "rte", "problem_type": "regression"},
            "--problem_type regression is for one",
        ),
    ],
)
def test_contradictions_and_gaps_are_refused(
    glue: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
):
    monkeypatch.chdir(glue)
    with pytest.raises(UserError, match=message):
        load_task(**arguments)


def test_hub_splits(monkeypatch: pytest.MonkeyPatch):
    import datasets

    names = ["entailment", "not_entailment"]

    def split(labels: list[int]) -> datasets.Dataset:
        features = datasets.Features(
            {
                "sentence1": datasets.Value("string"),
                "sentence2": datasets.Value("string"),
                "label": datasets.ClassLabel(names=names),
            }
        )
        texts = [f"text {row}" for row in range(len(labels))]
        columns = {"sentence1": texts, "sentence2": texts, "label": labels}
        return datasets.Dataset.from_dict(columns, features=features)

    def load_dataset(name: str, task: str) -> dict[str, datasets.Dataset]:
        assert (name, task) == ("nyu-mll/glue", "rte")
        return {"train": split([0, 1, 1]), "validation": split([1]), "test": split([-1, -1])}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_task(task_name="RTE").splits
    labels = splits["train"].labels
    assert labels is not None and labels.dtype == np.int32 and labels.tolist() == [0, 1, 1]
    assert splits["train"].text_b == ["text 0", "text 1", "text 2"]
    assert splits["test"].labels is None
    names[:] = ["not_entailment", "Entailment"]  # the same classes, numbered the other way round
    labels = load_task(task_name="RTE").splits["train"].labels
    assert labels is not None and labels.tolist() == [1, 0, 0]
    names[:] = ["yes", "no"]
    with pytest.raises(UserError, match=r"has rte with labels \['yes', 'no'\]"):
        load_task(task_name="RTE")


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def load_dataset(*_: str) -> None:
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"Couldn't reach .*pass --data_dir"):
        load_task(task_name="rte")


def test_task_names():
    assert len(TASK_NAMES) == 11 and {"docstrings", "documents"} < set(TASK_NAMES)
