"""The data that a model is evaluated on: whose columns and class names, labelled or not."""

import dataclasses
import json

import pytest

from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.data import Columns, TaskData
from dpbert_jax.data.tasks import GLUE_TASKS
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation import task
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.task import load_task_of, recorded_columns, with_run_defaults

SINGLE = Columns("text", None, "label")
PAIR = Columns("question", "answer", "label")


def config(*labels, **more):
    return DPBertConfig(dataclasses.replace(TINY, labels=labels or None, **more))


NAMED = config("negative", "positive")


@pytest.fixture
def run(tmp_path):
    """A function (columns, flags of the run) -> a folder with a run's record alone."""

    def record(columns, **flags):
        values = {"max_seq_length": 16, "task_name": None, "data_dir": None, **flags}
        resolved = {"columns": dataclasses.asdict(columns)} if columns else {}
        text = json.dumps({"validation_file": None, **values, "resolved": resolved})
        (tmp_path / "train_config.json").write_text(text)
        return tmp_path

    return record


def load(folder, config=NAMED, labels="needed", **flags):
    args = with_run_defaults(EvalArguments(str(folder), **flags), folder)
    return load_task_of(args, config, labels)


def file(folder, header, *rows):
    path = folder / "served.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def labels_of(data):
    return data.splits["validation"].labels.tolist()


def test_a_file_is_read_by_the_columns_of_the_run(run, tmp_path):
    path = file(tmp_path, "timestamp,text,label", "2024-03-01 10:00,a dog,negative")
    data = load(run(SINGLE), validation_file=path)
    assert data.splits["validation"].text_a == ["a dog"] and labels_of(data) == [0]
    path = file(tmp_path, "label,answer,question", "positive,a dog,who sat")
    data = load(run(PAIR), validation_file=path)
    split = data.splits["validation"]
    assert (split.text_a, split.text_b) == (["who sat"], ["a dog"])


def test_a_file_without_the_columns_of_the_run_is_refused_and_flags_name_others(run, tmp_path):
    path = file(tmp_path, "words,other,stars", "a dog,a cat,negative")
    with pytest.raises(
        UserError,
        match=r"served\.csv: there is no column 'text', which the training data has, among "
        r"\['words', 'other', 'stars'\]; --text_column_name names another",
    ):
        load(run(SINGLE), validation_file=path)
    flags = {"validation_file": path, "label_column_name": "stars"}
    data = load(run(SINGLE), text_column_name="words", **flags)
    assert data.splits["validation"].text_a == ["a dog"]
    with pytest.raises(UserError, match=r"no column 'answer'.*--text_pair_column_name names"):
        load(run(PAIR), text_column_name="words", **flags)
    data = load(run(PAIR), text_column_name="words", text_pair_column_name="other", **flags)
    assert data.splits["validation"].text_b == ["a cat"]


def test_an_older_run_has_no_columns_and_the_file_is_read_as_any(run, tmp_path):
    assert recorded_columns(run(None)) is recorded_columns(tmp_path / "none") is None
    path = file(tmp_path, "timestamp,text,label", "2024-03-01 10:00,a dog,negative")
    assert load(run(None), validation_file=path).splits["validation"].text_a == ["a dog"]


def test_a_file_may_lack_labels_where_they_are_not_needed(run, tmp_path):
    path = file(tmp_path, "text", "a dog")
    data = load(run(SINGLE), validation_file=path, labels="optional")
    assert data.splits["validation"].labels is None and data.spec.labels == NAMED.encoder.labels
    with pytest.raises(UserError, match=r"served\.csv: there is no column 'label'"):
        load(run(SINGLE), validation_file=path)
    path = file(
        tmp_path, "text,Label", "a dog,negative", "a cat,neutral"
    )  # checked, as it is there
    with pytest.raises(UserError, match="line 3: label 'neutral' is not one of"):
        load(run(SINGLE), validation_file=path, labels="optional")


def test_class_names_in_any_order_case_or_mapping(run, tmp_path):
    path = file(tmp_path, "text,label", "a,Negative", "b,positive")
    flags = {"validation_file": path}
    assert labels_of(load(run(SINGLE), config("POSITIVE", "NEGATIVE"), **flags)) == [1, 0]
    for nameless in (config(), config("0", "1")):
        with pytest.raises(UserError, match="as in --label_mapping Negative=0 positive=1"):
            load(run(SINGLE), nameless, **flags)
        mapping = ["Negative=0", "positive=1"]
        assert labels_of(load(run(SINGLE), nameless, label_mapping=mapping, **flags)) == [0, 1]
    # More of the run's own data is read by the mapping that the run was trained with.
    mapping = ["negative=NEG", "positive=POS"]
    folder = run(SINGLE, label_mapping=mapping, validation_file=path)
    assert labels_of(load(folder, config("POS", "NEG"))) == [1, 0]
    assert labels_of(load(folder, config("POS", "NEG"), **flags)) == [1, 0]


def test_a_glue_folder_is_matched_by_name(run, tmp_path):
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_text("sentence\tlabel\na\t0\nb\t1\n")
    data = load(run(SINGLE), config("positive", "negative"), data_dir=str(tmp_path / "SST-2"))
    assert (labels_of(data), data.spec.labels) == ([1, 0], ("positive", "negative"))
    with pytest.raises(UserError, match=r"the model \['good', 'bad'\]: .*--label_mapping"):
        load(run(SINGLE), config("good", "bad"), data_dir=str(tmp_path / "SST-2"))


def test_the_positive_class_is_the_runs_unless_another_is_named(run, tmp_path):
    path = file(tmp_path, "text,label", "a,negative")
    folder = run(SINGLE, positive_class="negative", validation_file=path)
    assert load(folder).spec.positive == load(folder, validation_file=path).spec.positive == 0
    assert load(folder, positive_class="positive").spec.positive == 1
    with pytest.raises(UserError, match="--positive_class good is not one of the classes"):
        load(folder, positive_class="good")


def test_a_task_of_another_kind_is_refused(run, monkeypatch, tmp_path):
    (tmp_path / "STS-B").mkdir()
    header = "index\tsentence1\tsentence2\tscore\n"
    (tmp_path / "STS-B" / "dev.tsv").write_text(header + "0\ta\tb\t3.8\n")
    with pytest.raises(UserError, match="trained for 2 classes, which task 'stsb' is not"):
        load(run(SINGLE), data_dir=str(tmp_path / "STS-B"))
    monkeypatch.setattr(task, "load_task", lambda **_: TaskData(GLUE_TASKS["sst2"], {}))
    with pytest.raises(UserError, match=r"The data has no split \['validation'\]"):
        load(run(SINGLE), task_name="sst2")
