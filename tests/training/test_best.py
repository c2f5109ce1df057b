"""The best epoch: kept while it is the best, and found again by a run that goes on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.data import load_task
from dpbert_jax.hub import load_run
from dpbert_jax.training import best as module
from dpbert_jax.training.asking import Asking
from dpbert_jax.training.best import BestEpoch
from dpbert_jax.training.step import TrainState


@pytest.fixture
def make(tiny_run, run_flags, tmp_path, monkeypatch):
    """A function (scores to find) -> a BestEpoch over the tiny run's model, and its parameters."""
    _, config, params, tokenizer = load_run(str(tiny_run))
    files = {name: run_flags[name] for name in ("train_file", "validation_file")}
    task = load_task(**files)
    wanted = {"budget": 0.6, "max_seq_length": 16, "max_eval_samples": None, "dtype": jnp.float32}
    wanted["asking"] = Asking("cpu")

    def best_of(scores):
        left = iter(scores)
        monkeypatch.setattr(module, "score", lambda metrics: next(left))
        return BestEpoch(tmp_path, config, task, tokenizer, **wanted)

    return best_of, params


def state(params, number):
    return TrainState(jax.tree.map(lambda leaf: np.full_like(leaf, number), params), (), number)


def assert_holds(best, params, number):
    jax.tree.map(np.testing.assert_array_equal, best.params(), state(params, number).params)


@pytest.mark.parametrize(
    "scores, wanted",
    [([0.5, 0.7, 0.6], 2), ([0.5, 0.5, 0.4], 1), ([float("nan"), 0.1], 2), ([float("nan")], 1)],
)
def test_the_first_of_the_best_is_kept(scores, wanted, make):
    best_of, params = make
    best = best_of(scores)
    for number, _ in enumerate(scores, start=1):
        best.consider(number, state(params, number))
    assert_holds(best, params, wanted)


def test_scoring_epochs_again_changes_nothing(make, tmp_path):
    """As a run does that goes on from a checkpoint before the best epoch."""
    best_of, params = make
    best = best_of([0.5, 0.7, 0.6, 0.5, 0.7])
    for number in (1, 2, 3, 1, 2):
        best.consider(number, state(params, number))
    assert_holds(best, params, 2)
    assert json.loads((tmp_path / "best" / "score.json").read_text()) == {
        "score": 0.7,
        "stage_step": 2,
    }


def test_the_score_is_that_of_the_validation_rows(make, tiny_run, monkeypatch):
    best_of, params = make
    best = best_of([])
    monkeypatch.undo()  # the real score again
    best.consider(1, TrainState(params, (), 1))
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    wanted = next(line["eval_score"] for line in lines if line["phase"] == "eval/validation/0.6")
    assert json.loads((best._folder / "score.json").read_text())["score"] == pytest.approx(wanted)
