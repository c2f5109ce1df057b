"""Trackers: a line a step in metrics.jsonl, none twice, whatever a killed run left behind."""

import json
import sys

import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.training.tracker import make_tracker


def log(folder, *steps, last_step=0, report_to=("none",), phase="dense"):
    tracker = make_tracker(folder, list(report_to), last_step)
    tracker.log_config({"seed": 1})
    for step in steps:
        tracker.log(step, {"phase": phase, "loss": step / 4})
    tracker.close()


def lines(folder):
    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_for_every_step(tmp_path):
    log(tmp_path, 1, 2)
    assert lines(tmp_path) == [
        {"step": 1, "phase": "dense", "loss": 0.25},
        {"step": 2, "phase": "dense", "loss": 0.5},
    ]
    assert not (tmp_path / "tensorboard").exists()


def test_lines_behind_the_checkpoint_are_dropped(tmp_path):
    log(tmp_path, 1, 2, 3, 4)
    log(tmp_path, 3, 4, 5, last_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_half_written_line_is_dropped(tmp_path):
    log(tmp_path, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    log(tmp_path, 3, last_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_scores_of_the_runs_end_are_not_kept_twice(tmp_path):
    log(tmp_path, 1, 2)
    for _ in range(2):
        log(tmp_path, 2, last_step=2, phase="eval/validation/1")
    assert [line["phase"] for line in lines(tmp_path)] == ["dense", "dense", "eval/validation/1"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_say_is_null(value, tmp_path):
    tracker = make_tracker(tmp_path, ["none"])
    tracker.log(1, {"score": value, "phase": "final"})
    tracker.close()
    assert lines(tmp_path) == [{"step": 1, "score": None, "phase": "final"}]


def test_tensorboard_writes_event_files(tmp_path):
    log(tmp_path, 1, 2, report_to=["tensorboard"])
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"dense/loss" in events.read_bytes()
    assert len(lines(tmp_path)) == 2


def test_wandb_that_is_not_installed_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install"):
        make_tracker(tmp_path, ["wandb"])
