"""Tables over seeds, from sweeps small enough to check by hand."""

import json
import sys
from itertools import pairwise

import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.study.seeds import (
    controls_table,
    kept_table,
    main,
    own_cost_table,
    read_sweeps,
    seed_table,
)


def point(variant, budget, metrics, cost=0.6, layers=4.0, split="validation", agreement=0.9):
    names = ("accuracy", "f1")[: len(metrics)]
    return {
        "split": split,
        "variant": variant,
        "budget": budget,
        "metrics": dict(zip(names, metrics, strict=True)),
        "cost": cost,
        "mean_layers": layers,
        "agreement": agreement,
    }


def written(folder, task, seed, dense, points, splits=("validation",), layers=6):
    folder.mkdir(parents=True)
    metrics = dict(zip(("accuracy", "f1")[: len(dense)], dense, strict=True))
    insight = {"0.6": {"layer_frequency": [1.0] * layers}}
    about = {
        split: {"examples": 9, "dense_metrics": metrics, "insight": insight} for split in splits
    }
    report = {"task": task, "seed": seed, "splits": about, "points": points}
    (folder / "sweep.json").write_text(json.dumps(report))
    return str(folder)


@pytest.fixture
def folders(tmp_path):
    one = [
        point("threshold", 0.6, (0.7, 0.8), cost=0.59),
        point("threshold", 1.0, (0.8, 0.9), cost=1.0),
        point("top_k", 0.6, (0.1, 0.1)),
        point("mix", 0.6, (0.69, 0.77), agreement=0.88),
        point("static", None, (0.7, 0.7), cost=0.5, layers=3.0),
    ]
    other = [
        point("threshold", 0.6, (0.6, 0.7), cost=0.61),
        point("threshold", 1.0, (0.6, 0.8), cost=1.0),
        point("mix", 0.6, (0.61, 0.71), agreement=0.91),
    ]
    alone = [point("threshold", 0.5, (0.5,)), point("threshold", 1.0, (None,), cost=1.0)]
    return [
        written(tmp_path / "mrpc-42", "mrpc", 42, (0.7, 0.8), one),
        written(tmp_path / "cola-42", "cola", 42, (0.4,), alone),
        written(tmp_path / "mrpc-43", "mrpc", 43, (0.6, 0.8), other),
    ]


def body(table):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def test_kept_is_a_mean_over_the_seeds_with_its_deviation(folders):
    # Seed 42 keeps .75 of .75 and .85 of it, seed 43 .65 and .70 of .70.
    assert body(kept_table(read_sweeps(folders))) == [
        ["mrpc", "42, 43", "0.7250 ± 0.0354", "-", "96.4 ± 5.1", "106.7 ± 9.4"],
        ["cola", "42", "0.4000", "125.0", "-", "nan"],
    ]


def test_each_seed_has_its_metrics_and_the_cost_realised(folders):
    rows = body(seed_table(read_sweeps(folders)))
    assert [row[:3] for row in rows] == [
        ["mrpc, accuracy / f1", "42", "0.7000 / 0.8000"],
        ["mrpc, accuracy / f1", "43", "0.6000 / 0.8000"],
        ["cola, accuracy", "42", "0.4000"],
    ]
    assert rows[1][4] == "0.6000 / 0.7000: 92.9 % at 0.610"


def test_leads_over_a_control_are_those_of_the_first_plan_rule(folders):
    assert body(controls_table(read_sweeps(folders))) == [
        ["mrpc", "0.6", "0.600", "**0.7000**", "0.6950", "+2.0, -1.0"]
    ]


def test_agreement_leads_as_scores_do(folders):
    assert body(controls_table(read_sweeps(folders), "agreement")) == [
        ["mrpc", "0.6", "0.600", "**0.9000**", "0.8950", "+2.0, -1.0"]
    ]


def test_an_undefined_agreement_is_no_crash(tmp_path):
    # Scores that are all the same correlate with nothing.
    points = [point("threshold", 0.6, (0.5,)), {**point("mix", 0.6, (0.4,)), "agreement": None}]
    sweeps = read_sweeps([written(tmp_path / "stsb", "stsb", 42, (0.5,), points)])
    assert body(controls_table(sweeps, "agreement"))[0][4:] == ["nan", "+nan"]


def test_a_control_that_one_seed_lacks_has_its_leads_and_no_mean(folders, tmp_path):
    lacking = [point("threshold", 0.6, (0.6, 0.7)), point("threshold", 1.0, (0.6, 0.8))]
    third = written(tmp_path / "mrpc-44", "mrpc", 44, (0.6, 0.8), lacking)
    assert body(controls_table(read_sweeps([*folders, third]))) == [
        ["mrpc", "0.6", "0.600", "**0.6833**", "-", "+2.0, -1.0, -"]
    ]


def test_methods_stand_at_their_own_cost(folders, tmp_path):
    assert body(own_cost_table(read_sweeps(folders))) == [
        ["mrpc", "42", "static", "-", "-", "3", "0.500", "0.7000", "93.3"]
    ]
    points = [
        point("threshold", 0.6, (0.6,)),
        {**point("dact", None, (0.5,)), "trained_at": "tau 0.01"},
        *(
            {**point("planned_trbert", 0.6, (0.4 + 0.1 * alpha,)), "trained_at": f"alpha {alpha}"}
            for alpha in (1, 2)
        ),
    ]
    sweeps = read_sweeps([written(tmp_path / "rte", "rte", 42, (0.5,), points)])
    rows = body(own_cost_table(sweeps))
    assert [row[2:5] for row in rows] == [
        ["dact", "tau 0.01", "-"],
        ["planned_trbert", "alpha 1", "0.6"],
        ["planned_trbert", "alpha 2", "0.6"],
    ]
    assert body(controls_table(sweeps)) == [], "none of them is a control at the same cost"


def test_two_validation_splits_are_told_apart(tmp_path):
    splits = ("matched", "mismatched")
    points = [point("threshold", 0.6, (0.6,), split=split) for split in splits]
    sweeps = read_sweeps([written(tmp_path / "x", "mnli", 42, (0.7,), points, splits)])
    assert list(sweeps) == ["mnli matched", "mnli mismatched"]


def test_sweeps_that_do_not_belong_together_are_refused(folders, tmp_path):
    with pytest.raises(UserError, match=r"both of mrpc, seed 42: name one of them"):
        read_sweeps([folders[0], folders[0]])
    fewer = [point("threshold", 0.6, (0.6, 0.7))]
    other = written(tmp_path / "fewer", "mrpc", 44, (0.6, 0.8), fewer)
    with pytest.raises(UserError, match=r"in their budgets \(\[0.6, 1.0\] and \[0.6\]\)"):
        read_sweeps([folders[0], other])
    both = [point("threshold", budget, (0.6, 0.7)) for budget in (0.6, 1.0)]
    deeper = written(tmp_path / "deeper", "mrpc", 44, (0.6, 0.8), both, layers=12)
    with pytest.raises(UserError, match=r"in their number of layers \(6 and 12\)"):
        read_sweeps([folders[0], deeper])


def test_folders_without_a_sweep_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"sweep.json cannot be read: No such file"):
        read_sweeps([str(tmp_path / "nowhere")])
    for text in ("{", "[]", "{}", '{"task": "mrpc", "seed": 1, "points": [], "splits": {"x": {}}}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(UserError, match=r"sweep.json is none that .* wrote, or is damaged"):
            read_sweeps([str(tmp_path)])


def test_an_undefined_score_of_the_dense_model_is_no_crash(tmp_path):
    points = [point("threshold", 0.6, (0.5,))]
    sweeps = read_sweeps([written(tmp_path / "stsb", "stsb", 42, (None,), points)])
    assert body(kept_table(sweeps)) == [["stsb", "42", "nan", "nan"]]


def test_prints_the_tables_of_the_folders_named(folders, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["seeds", *folders])
    main()
    printed = capsys.readouterr().out
    for earlier, later in pairwise(["| 96.4 ± 5.1 |", "**0.7000**", "**0.9000**", "Methods at"]):
        assert printed.index(earlier) < printed.index(later)
