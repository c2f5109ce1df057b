"""The output folder: what may be written to, what may be removed, what may change on resuming."""

import json

import pytest

from dpbert_jax.data import Columns
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.task import recorded_columns
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.output import FREE_FLAGS, open_output, recorded_arguments

COLUMNS = Columns("question", "answer", "label")


def open_folder(folder, rows=32, **flags):
    args = TrainArguments(str(folder), "minilm", task_name="docstrings", **flags)
    return open_output(args, rows, COLUMNS)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_records_the_flags(tmp_path):
    folder = open_folder(tmp_path / "deep" / "run", seed=7)
    recorded = json.loads((folder / "train_config.json").read_text())
    assert (recorded["seed"], recorded["task_name"]) == (7, "docstrings")
    assert recorded_columns(folder) == COLUMNS
    del recorded["resolved"]["columns"]  # as in runs from before they were recorded
    (folder / "train_config.json").write_text(json.dumps(recorded))
    assert recorded_columns(folder) is recorded_columns(tmp_path) is None


def test_the_flags_are_read_as_they_were_and_unknown_ones_refused(tmp_path):
    folder = open_folder(tmp_path / "run", seed=7)
    args = recorded_arguments(folder)
    assert args == TrainArguments(str(folder), "minilm", task_name="docstrings", seed=7)
    path = folder / "train_config.json"
    recorded = json.loads(path.read_text())
    del recorded["keep_best"]  # as in runs from before there was such a flag
    path.write_text(json.dumps(recorded))
    assert recorded_arguments(folder) == args
    path.write_text(json.dumps({**recorded, "from_the_future": 1}))
    with pytest.raises(UserError, match="does not know: from_the_future"):
        recorded_arguments(folder)


def test_an_occupied_folder_is_refused(tmp_path):
    open_folder(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds a run already.*--resume"):
        open_folder(tmp_path, seed=1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_refused_and_left_as_it_was(overwrite, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "thesis.tex").write_text("years of work")
    (tmp_path / "config.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="not empty and holds no run"):
        open_folder(tmp_path, overwrite_output_dir=overwrite)
    assert contents(tmp_path) == before


def test_replacing_a_run_removes_what_a_run_writes_and_nothing_else(tmp_path):
    open_folder(tmp_path, seed=1)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "baselines" / "static_3").mkdir(parents=True)  # of the run that goes
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "skipped_rows.txt").write_text("train: a.csv line 2: ...\n")
    (tmp_path / "notes.txt").write_text("mine")
    open_folder(tmp_path, seed=2, overwrite_output_dir=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "train_config.json"]
    assert json.loads((tmp_path / "train_config.json").read_text())["seed"] == 2


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file"):
        open_folder(tmp_path / "run")


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(UserError, match="holds no run to go on with"):
        open_folder(tmp_path, resume="always")
    with pytest.raises(UserError, match="contradict"):
        open_folder(tmp_path, resume="always", overwrite_output_dir=True)


def test_every_changed_flag_is_named(tmp_path):
    open_folder(tmp_path)
    with pytest.raises(UserError, match=r"--seed was 42, is 1; --learning_rate was 5e-05, is 0.1"):
        open_folder(tmp_path, resume="always", seed=1, learning_rate=0.1, save_steps=1)


def test_a_flag_that_is_newer_than_the_run_had_its_default(tmp_path):
    recorded = json.loads((open_folder(tmp_path) / "train_config.json").read_text())
    del recorded["on_bad_row"]
    (tmp_path / "train_config.json").write_text(json.dumps(recorded))
    open_folder(tmp_path, resume="always")
    with pytest.raises(UserError, match=r"--on_bad_row was error, is skip"):
        open_folder(tmp_path, resume="always", on_bad_row="skip")


def test_flags_that_change_no_parameter_may_change(tmp_path):
    open_folder(tmp_path)
    before = contents(tmp_path)
    changed = {
        "per_device_train_batch_size": 8,
        "save_steps": 7,
        "logging_steps": 3,
        "report_to": ["none"],
        "max_eval_samples": 5,
    }
    assert set(changed) <= set(FREE_FLAGS)
    open_folder(tmp_path, resume="always", **changed)
    assert contents(tmp_path) == before


def test_auto_begins_where_there_is_no_run_and_goes_on_where_there_is(tmp_path):
    for _ in range(2):
        open_folder(tmp_path / "run", resume="auto", seed=7)
    with pytest.raises(UserError, match="--seed was 7, is 8"):
        open_folder(tmp_path / "run", resume="auto", seed=8)
    with pytest.raises(UserError, match="contradict"):
        open_folder(tmp_path / "run", resume="auto", overwrite_output_dir=True)


def test_a_run_goes_on_with_as_many_rows_a_step(tmp_path):
    open_folder(tmp_path, rows=32)
    open_folder(tmp_path, rows=32, resume="always", per_device_train_batch_size=4)
    with pytest.raises(UserError, match="learned from 32 rows a step, and this would be 64"):
        open_folder(tmp_path, rows=64, resume="always")
