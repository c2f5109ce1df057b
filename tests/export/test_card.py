"""The model card: a run's task and measured scores; and `push_to_hub`, which brings it along."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi

from dpbert_jax.config_file import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.report import evaluate_run
from dpbert_jax.export.card import measured
from dpbert_jax.model import Model
from dpbert_jax.run_folder import HELD_OUT, METRICS

BUDGET = [1.0, 0.7]


@pytest.fixture(scope="module")
def scored(tiny_run, tmp_path_factory):
    """A run's folder with what `dpbert eval --json` wrote to it; and the results."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    flags = {"budget": BUDGET, "plan_rule": "top_k", "executor": "masked"}
    return folder, evaluate_run(EvalArguments(str(folder), json=str(folder / "eval.json"), **flags))


def test_scores_are_those_of_the_files_with_their_split(scored):
    folder, results = scored
    rows = measured(folder, read_config(folder))
    found = {row.budget: row for row in rows if row.source == "eval.json"}
    assert list(found) == BUDGET
    for result in results:
        row = found[result["budget"]]
        assert (row.task, row.split, row.examples) == ("custom", "validation", 20)
        assert (row.plan_rule, row.metrics) == ("top_k", result["metrics"])
        assert (row.cost, row.mean_layers) == (result["cost"], result["mean_layers"])
    logged = [row for row in rows if row.source == METRICS]
    lines = map(json.loads, (folder / METRICS).read_text().splitlines())
    at = {line["budget"]: line for line in lines if "budget" in line}
    assert {row.budget for row in logged} == set(at) and 1.0 in at
    for row in logged:
        assert set(row.metrics) == {"accuracy", "f1", "f1_macro"}
        assert row.metrics["f1"] == at[row.budget]["eval_f1"]
        assert row.cost == at[row.budget]["eval_cost"]


def test_what_evaluation_measured_stands_for_what_training_did(scored, tmp_path):
    shutil.copytree(scored[0], tmp_path / "run")
    again = json.loads((tmp_path / "run" / "eval.json").read_text())
    again = [{**result, "plan_rule": "threshold"} for result in again]
    (tmp_path / "run" / "eval.json").write_text(json.dumps(again[0]))  # a single one: no list
    sources = {row.budget: row.source for row in measured(tmp_path / "run", read_config(scored[0]))}
    assert sources.pop(1.0) == "eval.json"
    assert set(sources.values()) == {METRICS}


def test_scores_at_other_thresholds_than_the_models_are_left_out(scored, tmp_path):
    config = read_config(scored[0])
    assert config.calibration is not None and config.calibration.inputs == HELD_OUT
    calibration = dataclasses.replace(config.calibration, inputs="custom test")
    rows = measured(scored[0], dataclasses.replace(config, calibration=calibration))
    # Of all layers, and of a rule that reads no thresholds.
    assert {(row.plan_rule, row.budget) for row in rows} == {
        ("threshold", 1.0),
        ("top_k", 1.0),
        ("top_k", 0.7),
    }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What the hub was given: calls, and the folder as it was then."""
    given = SimpleNamespace(calls=[], folder=tmp_path / "hub")

    def create_repo(self, repo_id, **flags):
        given.calls.append(("create_repo", repo_id, flags, self.token))
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, **flags):
        given.calls.append(("upload_folder", repo_id, flags, self.token))
        shutil.copytree(folder_path, given.folder)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return given


def test_a_run_is_pushed_with_its_card_and_is_the_same_model(scored, hub):
    model = Model.from_pretrained(scored[0])
    model.push_to_hub("tiny", private=True, token="hf_x", commit_message="First")
    assert hub.calls == [
        ("create_repo", "tiny", {"private": True, "exist_ok": True}, "hf_x"),
        ("upload_folder", "someone/tiny", {"commit_message": "First"}, "hf_x"),
    ]
    card = (hub.folder / "README.md").read_text()
    assert "Budgets from 0.4 to 1.0" in card and "gets\n0.75." in card
    assert "Fine-tuned on custom, texts in the column sentence, cut to 16 tokens." in card
    accuracy = scored[1][0]["metrics"]["accuracy"]
    assert f"| custom | validation | 20 | top_k | 1 | {accuracy:.4f} |" in card
    assert f"`{METRICS}`" in card and "`eval.json`" in card
    again = Model.from_pretrained(hub.folder)
    texts = ["the cat sat on the mat", "a film and it was good " * 4]
    assert again.predict(texts, budget=0.7) == model.predict(texts, budget=0.7)


def test_a_dense_model_has_a_card_and_no_scores_where_none_were_measured(tiny_run, hub):
    Model.from_pretrained(tiny_run / "teacher").push_to_hub("dense")
    card = (hub.folder / "README.md").read_text()
    assert card.startswith("---\n") and "All layers run" in card
    assert "Measured" not in card and "Task" not in card


def test_what_the_hub_refuses_is_a_sentence(tiny_run, tmp_path):
    model = Model.from_pretrained(tiny_run)
    # No network: the tests run with HF_HUB_OFFLINE.
    with pytest.raises(UserError, match=r"'tiny' cannot be uploaded .* `hf auth login`"):
        model.push_to_hub("tiny")
    with pytest.raises(UserError, match="'a/b/c' cannot be uploaded"):
        model.push_to_hub("a/b/c")
    config = dataclasses.replace(model.config, calibration=None)
    with pytest.raises(UserError, match="no thresholds"):
        dataclasses.replace(model, config=config).push_to_hub("tiny")
