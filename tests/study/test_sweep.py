"""The whole of it on a tiny run: baselines trained, swept, written, drawn."""

import csv
import json
import shutil
from itertools import pairwise

import pytest

from dpbert_jax.config_file import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.report import evaluate_run
from dpbert_jax.hub import load_run
from dpbert_jax.study.baselines import BaselineArguments, train_baselines
from dpbert_jax.study.curve import pareto_front
from dpbert_jax.study.sweep import sweep
from dpbert_jax.study.sweep_arguments import SweepArguments


@pytest.fixture(scope="module")
def run_with_baselines(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept") / "run"
    shutil.copytree(tiny_run, folder)
    methods = ["static", "deebert", "pabee", "dact", "smartbert"]
    methods += ["trbert", "planned_trbert"]
    train_baselines(
        BaselineArguments(
            str(folder), methods, layers=[2], tau=[0.0, 9.0], penalty=[0.5], alpha=[0.5, 2.0]
        )
    )
    return folder


@pytest.fixture(scope="module")
def swept(run_with_baselines, tmp_path_factory):
    output = tmp_path_factory.mktemp("sweeps") / "out"
    arguments = SweepArguments(
        model_name_or_path=str(run_with_baselines),
        output_dir=str(output),
        budget=[0.85, 0.5, 0.7, 1.0, 0.5],
        draws=2,
        repeats=1,
        latency_rows=3,
    )
    return sweep(arguments), output


def test_a_static_baseline_is_a_plain_bert_of_its_layers(run_with_baselines):
    _, config, _, _ = load_run(str(run_with_baselines / "baselines" / "static_2"))
    assert config.planner is None and config.encoder.num_hidden_layers == 2


def test_a_baseline_that_drops_tokens_is_evaluated_beside_the_runs_dense_model(run_with_baselines):
    folder = run_with_baselines / "baselines" / "planned_trbert_0.5"
    least = read_config(folder).calibration.budgets[0]
    budgets = [1.0, round(least + 0.1, 2)]
    flags = {"budget": budgets, "calibrate": "validation", "executor": "packed"}
    whole, some = evaluate_run(EvalArguments(str(folder), **flags))
    assert whole["dense_model"] == some["dense_model"] == "teacher"
    assert "validation" in read_config(folder).calibration.inputs
    assert some["cost"] == pytest.approx(some["budget"], abs=0.05)
    [dense] = evaluate_run(EvalArguments(str(run_with_baselines), budget=[1.0], executor="packed"))
    assert whole["dense_metrics"] == dense["dense_metrics"]


def of(report, variant):
    return [point for point in report["points"] if point["variant"] == variant]


def test_tokens_that_drop_out_cost_alike_in_a_sweep_and_when_the_model_is_evaluated(
    run_with_baselines, swept
):
    folder = run_with_baselines / "baselines" / "trbert_0.5"
    [made] = evaluate_run(EvalArguments(str(folder), executor="packed"))
    costs = [p["cost"] for p in of(swept[0], "trbert") if p["trained_at"] == "alpha 0.5"]
    assert costs == [pytest.approx(made["cost"])] and made["cost_unit"] == "flops"


def test_every_variant_has_its_points(swept):
    report, _ = swept
    for variant in ("threshold", "top_k", "deebert", "pabee"):
        assert [point["budget"] for point in of(report, variant)] == [0.5, 0.7, 0.85, 1.0]
    for variant in ("random", "shuffled", "mix", "length"):
        assert [point["budget"] for point in of(report, variant)] == [0.5, 0.7, 0.85]
    assert [point["mean_layers"] for point in of(report, "static")] == [2.0]
    assert [point["trained_at"] for point in of(report, "dact")] == ["tau 0", "tau 9"]
    assert [point["trained_at"] for point in of(report, "smartbert")] == ["penalty 0.5"]
    assert [point["trained_at"] for point in of(report, "trbert")] == ["alpha 0.5", "alpha 2"]
    own, _ = of(report, "trbert")
    for control in ("trbert_random", "trbert_importance"):
        point, _ = of(report, control)
        assert point["cost"] == pytest.approx(own["cost"], rel=1e-3)
    both = of(report, "planned_trbert")
    assert [(point["budget"], point["trained_at"]) for point in both] == [
        (budget, f"alpha {alpha}") for alpha in (0.5, 2) for budget in (0.5, 0.7, 0.85, 1.0)
    ]
    below = [point for point in both if point["budget"] < 1]
    for control in ("planned_trbert_random", "planned_trbert_importance"):
        for own, other in zip(below, of(report, control), strict=True):
            assert other["budget"] == own["budget"] and other["trained_at"] == own["trained_at"]
            assert other["cost"] == pytest.approx(own["cost"], rel=1e-3)
            assert other["mean_layers"] == pytest.approx(own["mean_layers"])
    assert [point["budget"] for point in of(report, "bank")] == [
        0.7,
        0.85,
        1.0,
    ]  # no model of one layer
    assert all(0 <= point["agreement"] <= 1 for point in report["points"])


@pytest.mark.parametrize("variant", ["threshold", "top_k"])
def test_a_larger_budget_never_costs_less(swept, variant):
    costs = [point["cost"] for point in of(swept[0], variant)]
    assert all(low <= high for low, high in pairwise(costs))
    assert costs[-1] == pytest.approx(1, abs=0.1)  # and the planner, which is large here


@pytest.mark.parametrize("variant", ["random", "shuffled", "mix", "length"])
def test_controls_cost_what_the_planned_point_costs(swept, variant):
    planned_points = of(swept[0], "threshold")[:-1]
    for point, planned in zip(of(swept[0], variant), planned_points, strict=True):
        assert point["cost"] == pytest.approx(planned["cost"], abs=0.02)


def test_the_bank_costs_what_the_planned_point_costs_and_ends_at_the_dense_model(swept):
    report = swept[0]
    for point, planned in zip(of(report, "bank"), of(report, "threshold")[1:], strict=True):
        assert point["cost"] == pytest.approx(min(planned["cost"], 1), abs=0.01)
    assert of(report, "bank")[-1]["agreement"] == 1
    assert of(report, "bank")[-1]["score_kept"] == 1


def test_planned_points_are_timed(swept):
    for point in of(swept[0], "threshold"):
        assert point["latency_ms"] > 0 and point["samples_per_second"] > 0
        assert 0 < point["latency_cost"] < 1.2


def test_files(swept):
    report, folder = swept
    assert json.loads((folder / "sweep.json").read_text()) == json.loads(json.dumps(report))
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report["points"])
    assert [row["variant"] for row in rows] == [p["variant"] for p in report["points"]]
    for name in ("curve.png", "layers_by_difficulty.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_control_that_was_not_trained_is_refused_by_name_and_left_out_of_all(tiny_run, tmp_path):
    flags = {"model_name_or_path": str(tiny_run), "budget": [0.7], "repeats": 0, "draws": 1}
    with pytest.raises(UserError, match=r"--controls pabee: .*dpbert baselines"):
        sweep(SweepArguments(output_dir=str(tmp_path), controls=["pabee"], **flags))
    with pytest.raises(UserError, match=r"--controls bank: .* no static models"):
        sweep(SweepArguments(output_dir=str(tmp_path), controls=["bank"], **flags))
    report = sweep(SweepArguments(output_dir=str(tmp_path), plan_rules=["threshold"], **flags))
    assert {p["variant"] for p in report["points"]} == {
        "threshold",
        "random",
        "shuffled",
        "mix",
        "length",
    }


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"controls": ["random", "none"]}, "--controls none: must be of"),
        ({"controls": ["all", "mix"]}, "--controls all: must be of"),
        ({"plan_rules": ["best"]}, "--plan_rules best"),
        ({"plan_rules": ["all"]}, "--plan_rules all"),
        ({"plan_rules": []}, "--plan_rules names none"),
        ({"draws": 0}, "--draws is 0"),
        ({"repeats": -1}, "--repeats is -1"),
    ],
)
def test_flags_refused(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        SweepArguments("x", output_dir="y", **flags)


def test_baselines_refused(tiny_run):
    with pytest.raises(UserError, match=r"--layers 5: a static plan has 2 to 3 layers"):
        train_baselines(BaselineArguments(str(tiny_run), layers=[5]))
    with pytest.raises(UserError, match="has no planner"):
        train_baselines(BaselineArguments(str(tiny_run / "teacher")))
    with pytest.raises(UserError, match="--methods best"):
        BaselineArguments("x", methods=["best"])


def test_the_pareto_front_has_what_none_beats():
    points = [
        (0.3, float("nan")),
        (0.5, 0.7),
        (0.6, 0.6),
        (0.6, 0.8),
        (0.7, 0.8),
        (0.9, 0.9),
        (0.4, 0.5),
    ]
    front = pareto_front([{"cost": cost, "score": score} for cost, score in points])
    assert front == [(0.4, 0.5), (0.5, 0.7), (0.6, 0.8), (0.9, 0.9)]
