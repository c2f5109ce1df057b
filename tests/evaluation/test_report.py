"""The report of a run: JSON, plots and table, and whose data it is made on."""

import json
import math
import shutil

import pytest

from dpbert_jax.config_file import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.report import evaluate_run
from dpbert_jax.evaluation.table import TIMED_ROWS, print_table, write_json
from dpbert_jax.hub import load_run
from dpbert_jax.integrity import read_sums
from dpbert_jax.policies.cost import COST_UNITS

FIELDS = {
    "task",
    "split",
    "examples",
    "budget",
    "plan_rule",
    "executor",
    "metrics",
    "dense_metrics",
    "score_kept",
    "mean_layers",
    "num_layers",
    "cost",
    "cost_unit",
    "distinct_plans",
    "layer_frequency",
    "seconds",
}


def evaluate(folder, **flags):
    return evaluate_run(EvalArguments(model_name_or_path=str(folder), executor="masked", **flags))


def test_several_budgets(tiny_run, tmp_path, capsys):
    path, plots = tmp_path / "deep" / "eval.json", tmp_path / "plots"
    results = evaluate(tiny_run, budget=[1.0, 0.75], json=str(path), plot_dir=str(plots))
    written = json.loads(path.read_text())
    assert [result["budget"] for result in written] == [1.0, 0.75]
    assert written == results
    for result in written:
        assert set(result) >= FIELDS
        assert (result["split"], result["examples"]) == ("validation", 20)
        assert set(result["metrics"]) == {"accuracy", "f1", "f1_macro"}
        assert len(result["layer_frequency"]) == result["num_layers"] == 3
        assert sum(result["layer_frequency"]) == pytest.approx(result["mean_layers"], abs=1e-5)
    full, planned = written
    assert (full["mean_layers"], full["distinct_plans"]) == (3.0, 1)
    assert planned["mean_layers"] < 3
    for name in ("score_against_cost.png", "layers_per_input.png"):
        assert (plots / name).read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "dense" in table and "0.75" in table and "3.00/3" in table
    assert f"cost, of the dense FLOPs: {COST_UNITS['flops']}" in table


def test_the_table_says_of_which_class_f1_is_and_when_rows_are_too_few_to_time(tiny_run, capsys):
    (result,) = evaluate(tiny_run, budget=[1.0])
    assert "f1 (positive)" in capsys.readouterr().out and result["f1_class"] == "positive"
    for rows, shown in ((TIMED_ROWS - 1, "-"), (TIMED_ROWS, "50 %")):
        timed = {"executor": "packed", "examples": rows, "seconds": 1.0, "dense_seconds": 2.0}
        print_table([{**result, **timed, "score_kept": math.nan}])
        table = capsys.readouterr().out
        assert ("too few rows" in table) == (shown == "-")
        last = table.splitlines()[-1].split("  ")
        assert last[-1].strip() == shown and "undefined" in table


def test_one_budget_is_an_object(tiny_run, tmp_path):
    path = tmp_path / "eval.json"
    (result,) = evaluate(tiny_run, plan_rule="top_k", budget=[0.7], json=str(path))
    assert json.loads(path.read_text()) == result
    assert result["mean_layers"] == 2.0  # floor(0.7 * 3), stem included
    assert result["plan_rule"] == "top_k"


def test_the_scores_are_those_that_training_logged(tiny_run):
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    logged = {line["budget"]: line for line in lines if line["phase"].startswith("eval/")}
    for result in evaluate(tiny_run, budget=sorted(logged)):
        line = logged[result["budget"]]
        assert line["eval_accuracy"] == result["metrics"]["accuracy"]
        assert line["eval_cost"] == pytest.approx(result["cost"])


def test_own_rows_in_place_of_the_runs(tiny_run, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sentence,label\nthe cat sat,negative\na dog ran,negative\n")
    (result,) = evaluate(tiny_run, validation_file=str(path))
    assert result["examples"] == 2
    path.write_text("sentence,label\nthe cat sat,neutral\n")
    with pytest.raises(UserError, match="neutral"):
        evaluate(tiny_run, validation_file=str(path))


def test_a_dense_model_is_its_own_reference(tiny_run, sentence_files):
    flags = {"validation_file": sentence_files["classes"]["validation_file"], "max_seq_length": 16}
    (result,) = evaluate(tiny_run / "teacher", **flags)
    assert result["metrics"] == result["dense_metrics"]
    assert (result["score_kept"], result["cost"]) == (1.0, 1.0)
    with pytest.raises(UserError, match="no planner"):
        evaluate(tiny_run / "teacher", budget=[0.7], **flags)


@pytest.mark.parametrize(
    "flag", ["max_seq_length", "max_eval_samples", "per_device_eval_batch_size"]
)
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_below_one_are_refused(flag, value):
    with pytest.raises(UserError, match=f"--{flag} is {value}"):
        EvalArguments("run", **{flag: value})


def test_json_has_null_where_a_figure_is_undefined(tmp_path):
    path = tmp_path / "eval.json"
    write_json(path, [{"score": math.nan, "metrics": {"pearson": math.nan}, "cost": 0.5}])
    found = json.loads(path.read_text())
    assert found == {"score": None, "metrics": {"pearson": None}, "cost": 0.5}


def test_calibration_on_another_split_is_written_to_the_run(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    before = read_config(folder).calibration
    (result,) = evaluate(folder, budget=[0.7], calibrate="validation")
    after = read_config(folder).calibration
    load_run(str(folder))  # the checksums followed
    assert read_sums(folder) is not None
    assert after.thresholds != before.thresholds and after.budgets == before.budgets
    assert before.inputs == "rows held out of training" and after.inputs == "custom validation"
    assert result["cost"] == pytest.approx(0.7, abs=1 / 60 + 1e-6)  # one gate of one of 20 rows
    with pytest.raises(
        UserError, match=r"--calibrate served: this data has the splits \['validation'"
    ):
        evaluate(folder, calibrate="served")
    with pytest.raises(UserError, match="no planner, and so no thresholds"):
        evaluate(folder / "teacher", calibrate="validation")
