"""Whole runs of a tiny model: what they leave behind, and that interruptions do not show."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_run
from dpbert_jax.integrity import read_sums, verify
from dpbert_jax.model import Model
from dpbert_jax.training import run, stage_steps
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.loop import Span, run_span
from dpbert_jax.training.run import train
from dpbert_jax.training.stage import FINAL, PlannedStage, abstract_state
from dpbert_jax.training.step import TrainStep


class Interrupted(Exception):
    """Something that the library does not know."""


def start(folder, flags, **changes):
    train(TrainArguments(output_dir=str(folder), **{**flags, **changes}))


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def metrics(folder):
    """All lines, without how long things took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in ("examples_per_second", "data_wait", "checkpoint_wait"):
            line.pop(name, None)
    return lines


def wrap_steps(monkeypatch, change):
    """Has `change(stage, steps done, state, sums)` see every step; it may raise."""

    def watched(span, step, *args):
        def wrapped(state, batch, signal):
            state, sums = step(state, batch, signal)
            change(span.name, int(state.step), sums)
            return state, sums

        return run_span(span, wrapped, *args)

    monkeypatch.setattr(run, "run_span", watched)


def test_the_folder_holds_what_the_contract_names(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "train_config.json",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "teacher",
    }
    config = json.loads((tiny_run / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("bert", 3)
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    calibration = config["dpbert"]["calibration"]
    assert calibration["budgets"][0] == config["dpbert"]["planner"]["min_budget"] == 0.4
    assert len(calibration["thresholds"]) == len(calibration["budgets"])
    assert "dpbert" not in json.loads((tiny_run / "teacher" / "config.json").read_text())
    assert list((tiny_run / "tensorboard").iterdir())


def test_run_and_teacher_have_sums_over_all_that_no_longer_grows(tiny_run):
    for folder in (tiny_run, tiny_run / "teacher"):
        verify(folder)
        growing = {"metrics.jsonl", "checkpoints", "tensorboard", "teacher", "SHA256SUMS"}
        assert set(read_sums(folder)) == {path.name for path in folder.iterdir()} - growing


def test_every_step_of_every_stage_is_logged_once(tiny_run):
    lines = metrics(tiny_run)
    steps = [(line["step"], line["phase"]) for line in lines if "loss" in line]
    phases = ["dense"] * 8 + ["joint"] * 4 + ["final"] * 4
    assert steps == list(zip(range(1, 17), phases, strict=True))
    assert all(line["mean_layers"] == 3 for line in lines if line["phase"] == "dense")
    scored = [line["phase"] for line in lines if "loss" not in line]
    assert scored == [f"eval/validation/{budget}" for budget in ("1", "0.75", "0.6")]


def test_the_run_is_the_newest_checkpoint_with_a_planner_fitted_anew(tiny_run):
    _, config, params, _ = load_run(str(tiny_run))
    assert config.planner is not None and config.calibration is not None
    restored = run.Checkpoints(tiny_run / "checkpoints", {})
    dense = dataclasses.replace(config, calibration=None)
    args = TrainArguments(output_dir=str(tiny_run), model_name_or_path="unused")
    planned = PlannedStage(FINAL, Span("final", 12, 4))
    found = restored.restore(lambda index: abstract_state(planned, dense, args))
    restored.close()
    assert found is not None and found[:2] == (16, (2, 4))
    before, after = ({**tree} for tree in (found[2].params, params))
    old, new = before.pop("planner"), after.pop("planner")
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not np.array_equal(old["output"]["bias"], new["output"]["bias"])


# The stage and its step behind which the run is interrupted, one after the other. Checkpoints are
# at global steps 3, 6, 8, 9, 12, 15 and 16; the stages begin behind 0, 8 and 12.
STOPS = {
    "one_in_each_stage": [("dense", 4), ("joint", 2), ("final", 1)],
    "before_any_checkpoint_and_at_the_end": [
        ("dense", 2),
        ("dense", 8),
        ("joint", 1),
        ("final", 4),
    ],
}


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param(stops, id=name, marks=[pytest.mark.slow] * number)
        for number, (name, stops) in enumerate(STOPS.items())
    ],
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    stops, tiny_run, run_flags, tmp_path, monkeypatch
):
    for number, stop in enumerate(stops):

        def change(stage, done, sums, stop=stop):
            if (stage, done) == stop:
                raise Interrupted

        wrap_steps(monkeypatch, change)
        with pytest.raises(Interrupted):
            start(tmp_path, run_flags, resume="always" if number else "never")
    monkeypatch.undo()
    start(tmp_path, run_flags, resume="always")
    assert weights(tmp_path) == weights(tiny_run)
    assert (tmp_path / "config.json").read_bytes() == (tiny_run / "config.json").read_bytes()
    assert metrics(tmp_path) == metrics(tiny_run)


@pytest.mark.slow
def test_masks_are_those_of_the_step_whatever_was_interrupted(run_flags, tmp_path, monkeypatch):
    flags = {**run_flags, "masked_share": 0.5}
    start(tmp_path / "whole", flags)

    def change(stage, done, sums):
        if (stage, done) == ("final", 2):
            raise Interrupted

    wrap_steps(monkeypatch, change)
    with pytest.raises(Interrupted):
        start(tmp_path / "parts", flags)
    monkeypatch.undo()
    start(tmp_path / "parts", flags, resume="always")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(tiny_run, run_flags, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    (folder / "config.json").write_text("{}")  # a kill as it was saved leaves such, or such sums
    (folder / "SHA256SUMS").write_text("")
    start(folder, run_flags, resume="always")
    verify(folder)
    assert weights(folder) == weights(tiny_run)
    assert metrics(folder) == metrics(tiny_run)


def test_a_teacher_takes_the_place_of_the_first_stage(tiny_run, run_flags, tmp_path):
    changes = {"model_name_or_path": None, "teacher": str(tiny_run / "teacher")}
    start(tmp_path, run_flags, **changes)
    phases = [line["phase"] for line in metrics(tmp_path) if "loss" in line]
    assert phases == ["joint"] * 4 + ["final"] * 4
    assert weights(tmp_path / "teacher") == weights(tiny_run / "teacher")
    assert weights(tmp_path) == weights(tiny_run)  # as if one run had done both


def test_adapters_learn_behind_a_run_and_leave_it_as_it_was(
    tiny_run, run_flags, tmp_path, monkeypatch
):
    changes = {"model_name_or_path": None, "teacher": str(tiny_run / "teacher"), "adapter_rank": 2}
    changes |= {"num_adapter_epochs": 1.0, "adapter_learning_rate": 3e-2}

    def stop(stage, done, sums):
        if (stage, done) == ("adapters", 2):
            raise Interrupted

    wrap_steps(monkeypatch, stop)
    with pytest.raises(Interrupted):
        start(tmp_path, run_flags, **changes)
    monkeypatch.undo()
    start(tmp_path, run_flags, **changes, resume="always")
    phases = [line["phase"] for line in metrics(tmp_path) if "loss" in line]
    assert phases == ["joint"] * 4 + ["final"] * 4 + ["adapters"] * 4

    _, config, params, _ = load_run(str(tmp_path))
    assert config.adapters is not None and config.calibration is not None
    # A layer that no plan of few layers ran learns nothing; the head always does.
    own = params["adapters"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own["head"]))
    assert any(np.abs(own[layer]["query"]["up"]).max() > 0 for layer in ("layer_1", "layer_2"))
    before = load_run(str(tiny_run))[2]
    for name in before.keys() - {"planner"}:  # which is refitted once more
        jax.tree.map(np.testing.assert_array_equal, params[name], before[name])
    texts = ["the cat sat on the mat", "a good film"]
    with_own, without = (Model.from_pretrained(folder) for folder in (tmp_path, tiny_run))
    for budget, same in ((1.0, True), (0.5, False)):
        found, other = (m.predict(texts, budget=budget) for m in (with_own, without))
        pairs = zip(found, other, strict=True)
        assert all((a.probabilities == b.probabilities) == same for a, b in pairs)


def test_a_run_is_no_teacher(tiny_run, run_flags, tmp_path):
    changes = {"model_name_or_path": None, "teacher": str(tiny_run)}
    with pytest.raises(UserError, match="has a planner already"):
        start(tmp_path / "run", run_flags, **changes)
    assert not (tmp_path / "run").exists()


def test_without_a_mask_token_nothing_is_masked(tiny_run, run_flags, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_run / "teacher", bare)
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(bare)
    (bare / "SHA256SUMS").unlink()
    flags = {**run_flags, "model_name_or_path": None, "teacher": str(bare), "masked_share": 0.5}
    with pytest.raises(UserError, match="no mask token: leave --masked_share out"):
        start(tmp_path / "run", flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_regression(run_flags, sentence_files, tmp_path):
    start(tmp_path, run_flags, **sentence_files["scores"])
    _, config, _, _ = load_run(str(tmp_path))
    assert config.encoder.is_regression and config.encoder.num_labels == 1
    lines = metrics(tmp_path)
    assert all(-1 <= line["score"] <= 1 for line in lines if "loss" in line)
    assert {"eval_pearson", "eval_spearmanr"} <= set(lines[-1])


def test_a_loss_that_is_nan_stops_the_run_before_it_is_saved(run_flags, tmp_path, monkeypatch):
    def change(stage, done, sums):
        sums["loss"] = float("nan") if done == 6 else sums["loss"]

    wrap_steps(monkeypatch, change)
    with pytest.raises(UserError, match=r"loss is nan .* in stage dense, step 6 of 8 .* rows \d"):
        start(tmp_path, run_flags)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert not (tmp_path / "model.safetensors").exists()


def test_other_flags_and_other_folders_are_refused(tiny_run, run_flags):
    before = weights(tiny_run)
    with pytest.raises(UserError, match=r"--num_planner_epochs was 1\.0, is 2\.0"):
        start(tiny_run, run_flags, resume="always", num_planner_epochs=2.0)
    with pytest.raises(UserError, match="holds a run already"):
        start(tiny_run, run_flags)
    assert weights(tiny_run) == before


@pytest.mark.slow
def test_one_device_trains_as_four_do(steady_run, steady_flags, tmp_path, monkeypatch):
    """The same global batches of 8 rows on one device."""

    def on_one(*args, **kwargs):
        return TrainStep(*args, **kwargs, devices=jax.devices()[:1])

    monkeypatch.setattr(stage_steps, "TrainStep", on_one)
    start(tmp_path, steady_flags)
    one, four = ([line for line in metrics(f) if "loss" in line] for f in (tmp_path, steady_run))
    for line, wanted in zip(one, four, strict=True):
        assert line["step"] == wanted["step"]
        assert line["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
    trained = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(steady_run / "model.safetensors").items():
        np.testing.assert_allclose(trained[name], tensor, atol=2e-3, err_msg=name)
