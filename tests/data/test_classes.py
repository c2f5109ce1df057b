"""Classes by name: a task's in a model's order, mappings, the class that F1 is of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpbert_jax.data import Classes, Examples, TaskData, classes_of_model, load_task
from dpbert_jax.data.classes import aligned, with_positive_class
from dpbert_jax.data.tasks import GLUE_TASKS, custom_spec
from dpbert_jax.errors import UserError
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, SINGLE_LABEL


def model(names: Any, *mapping: str, count: int = 2) -> Classes:
    return classes_of_model(SINGLE_LABEL, count, names, mapping)


def task(name: str, labels: list[int]) -> TaskData:
    texts = [str(label) for label in labels]
    return TaskData(
        GLUE_TASKS[name],
        {"validation": Examples(texts, None, np.asarray(labels, np.int32))},
    )


def classes_in(data: TaskData) -> list[str]:
    labels, names = data.splits["validation"].labels, data.spec.labels
    assert labels is not None and names is not None
    return [names[label] for label in labels]


@pytest.mark.parametrize("names", [("positive", "negative"), ("POSITIVE", "Negative")])
def test_a_glue_folder_takes_the_order_of_the_model(names: tuple[str, ...]):
    data = aligned(task("sst2", [0, 1, 1]), model(names))
    labels = data.splits["validation"].labels
    assert labels is not None and labels.tolist() == [1, 0, 0] and labels.dtype == np.int32
    assert data.spec.labels == names
    assert [name.lower() for name in classes_in(data)] == ["negative", "positive", "positive"]


def test_f1_stays_of_the_same_class():
    data = aligned(task("mrpc", [0, 1]), model(("equivalent", "not_equivalent")))
    assert (data.spec.positive, data.spec.labels) == (0, ("equivalent", "not_equivalent"))


@pytest.mark.parametrize("names", [None, ("0", "1"), ("LABEL_0", "LABEL_1")])
def test_ids_stand_where_the_model_has_no_names(
    names: tuple[str, ...] | None, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "dpbert_jax")
    data = aligned(task("sst2", [0, 1, 1]), model(names))
    assert classes_in(data) == ["negative", "positive", "positive"]
    assert "no names; taken as the task's: 0=negative, 1=positive." in caplog.text


def test_a_mapping_stands_in_for_equal_names():
    with pytest.raises(
        UserError,
        match=r"'sst2' has the classes \['negative', 'positive'\], the model \['POS', 'NEG'\]: .* "
        r"--label_mapping negative=POS positive=NEG \(or in another order\)",
    ):
        aligned(task("sst2", [0, 1]), model(("POS", "NEG")))
    for mapping in (("negative=NEG", "positive=POS"), ("negative=1", "positive=LABEL_0")):
        data = aligned(task("sst2", [0, 1, 1]), model(("POS", "NEG"), *mapping))
        assert classes_in(data) == ["NEG", "POS", "POS"]
    data = aligned(task("sst2", [0, 1, 1]), model(None, "negative=1", "positive=0"))
    assert data.spec.labels == ("positive", "negative")
    assert classes_in(data) == ["negative", "positive", "positive"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (["negative"], r"--label_mapping negative: expected NAME=CLASS .* \['POS', 'NEG'\]"),
        (["negative=BAD"], "--label_mapping negative=BAD: expected"),
        (["negative=2"], "--label_mapping negative=2: expected"),
        (["a=POS", "a=NEG"], "a=NEG: a or NEG is there twice"),
        (["a=POS", "b=POS"], "b=POS: b or POS is there twice"),
        (["bad=POS", "good=NEG"], r"\['bad', 'good'\] are not classes of task 'sst2'"),
    ],
)
def test_mappings_that_say_nothing(mapping: list[str], message: str):
    with pytest.raises(UserError, match=message):
        aligned(task("sst2", [0, 1]), model(("POS", "NEG"), *mapping))


def test_scores_and_classes_do_not_agree():
    with pytest.raises(UserError, match="trained for 2 classes, which task 'stsb' is not"):
        aligned(task("stsb", [0]), model(None))
    with pytest.raises(UserError, match="trained for 3 classes, which task 'sst2' is not"):
        aligned(task("sst2", [0]), model(None, count=3))
    scores = classes_of_model(REGRESSION, 1, None)
    with pytest.raises(UserError, match="trained for a regression, which task 'sst2' is not"):
        aligned(task("sst2", [0]), scores)
    assert aligned(task("stsb", [0]), scores).spec.is_regression
    several = classes_of_model(MULTI_LABEL, 2, None)
    with pytest.raises(UserError, match="2 labels, any number a row, which task 'sst2' is not"):
        aligned(task("sst2", [0]), several)
    with pytest.raises(UserError, match="the model gives scores"):
        classes_of_model(REGRESSION, 1, None, ["a=0"])


def rows(folder: Path, *labels: str) -> str:
    path = folder / "dev.csv"
    path.write_text("text,label\n" + "".join(f"x,{label}\n" for label in labels))
    return str(path)


def test_own_files_and_a_model(tmp_path: Path):
    path = rows(tmp_path, "negative", "POSITIVE", "negative")
    for known in (
        model(("Positive", "Negative")),
        model(("POS", "NEG"), "negative=NEG", "positive=POS"),
        model(None, "negative=1", "positive=0"),
    ):
        labels = load_task(validation_file=path, model=known).splits["validation"].labels
        assert labels is not None and labels.tolist() == [1, 0, 1]
    with pytest.raises(
        UserError,
        match=r"\['POSITIVE', 'negative'\], the model \['0', '1'\]: say which is which, as in "
        "--label_mapping POSITIVE=0 negative=1",
    ):
        load_task(validation_file=path, model=model(None))
    with pytest.raises(UserError, match=r"line 3: label 'POSITIVE' is not one of \['POS', 'nega"):
        load_task(validation_file=path, model=model(("POS", "negative")))


@pytest.mark.parametrize("labels", [("0", "1"), ("0.0", "1.0"), ("LABEL_0", "LABEL_1")])
def test_labels_may_be_the_ids_of_a_model_without_names(
    labels: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "dpbert_jax")
    data = load_task(validation_file=rows(tmp_path, *labels), model=model(None))
    encoded = data.splits["validation"].labels
    assert encoded is not None and encoded.tolist() == [0, 1]
    assert "labels are taken as its ids" in caplog.text


def test_names_that_differ_in_case_only_are_told_by_case():
    known = Classes(SINGLE_LABEL, ("us", "US", "it"))
    assert [known.find(name) for name in ("us", "US", "Us", "IT")] == [0, 1, None, 2]


def test_the_positive_class(tmp_path: Path):
    path = rows(tmp_path, "spam", "ham", "spam")
    flags: dict[str, Any] = {"train_file": path, "validation_file": path}
    assert load_task(**flags).spec.positive == 1
    assert load_task(**flags, positive_class="HAM").spec.positive == 0
    with pytest.raises(UserError, match=r"--positive_class eggs is not one .* \['ham', 'spam'\]"):
        load_task(**flags, positive_class="eggs")
    three = with_positive_class(custom_spec(("text",), ("a", "b", "c")), "c")
    assert (three.positive, three.metrics) == (2, ("accuracy", "f1", "f1_macro"))
    for spec, message in (
        (custom_spec(("text",), None), "gives scores"),
        (custom_spec(("text",), ("a", "b"), True), "any number of classes a row"),
        (GLUE_TASKS["sst2"], "'sst2' is not scored by F1"),
    ):
        with pytest.raises(UserError, match=message):
            with_positive_class(spec, "negative")
    assert with_positive_class(GLUE_TASKS["mrpc"], "not_equivalent").positive == 0
