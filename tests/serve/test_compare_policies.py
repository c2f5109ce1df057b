"""The comparison of policies: its arithmetic, and a model's own times in it."""

import json

import numpy as np
import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.load import policies
from dpbert_jax.load.policies import PoliciesArguments, compare_policies
from dpbert_jax.serve.measure import Measured


def test_the_solved_policy_costs_its_gain_and_nothing_costs_less(tmp_path):
    path = tmp_path / "found.json"
    args = PoliciesArguments(load=[0.3, 0.8], arrivals=5_000, seeds=3, json=str(path))
    found = compare_policies(args)
    assert found == json.loads(path.read_text())
    for each in found:
        assert abs(each["against_gain"]) < 0.04 and 0 < each["error"] < 0.04
        for other in ("greedy", "fixed", "fixed_for_all"):
            cost = each["smdp"] / each[other]
            assert cost - 1 == pytest.approx(each[f"against_{other}"], abs=1e-3) and cost < 1.02
        assert each["fixed"] <= each["fixed_for_all"]
    assert found[0]["fixed_for_all_setting"] == found[1]["fixed_for_all_setting"]
    assert [each["rate"] for each in found] == [pytest.approx(load * 8 / 2.5) for load in args.load]


def test_dear_batches_are_worth_waiting_for():
    [cheap], [dear] = (
        compare_policies(PoliciesArguments(load=[0.5], arrivals=2_000, seeds=1, batch_cost=cost))
        for cost in (0.0, 40.0)
    )
    assert cheap["against_greedy"] == pytest.approx(0.0, abs=0.01) and cheap["error"] is None
    assert dear["against_greedy"] < -0.1
    assert dear["fixed_setting"][1] > cheap["fixed_setting"][1]


def test_a_model_is_simulated_on_its_own_times(served_folder, monkeypatch):
    seconds = [[[0.005, 0.01], [0.01, 0.025]]]
    times = Measured([1, 4], [32], [0.5, 1.0], [[0.5, 1.0]], seconds)
    asked = []
    monkeypatch.setattr(policies, "measured", lambda *about: asked.append(about[1:]) or times)
    services = []
    simulate = policies.simulate
    monkeypatch.setattr(
        policies, "simulate", lambda *about: services.append(about[2]) or simulate(*about)
    )
    args = PoliciesArguments(
        str(served_folder), [0.5], 3.0, 100, 1, budget=[0.75], max_batch_size=4, measure=True
    )
    [found] = compare_policies(args)
    assert asked == [(4, 0.75, True)]
    assert found["rate"] == pytest.approx(0.5 * 4 / services[0].seconds[3, 0], rel=1e-3)
    np.testing.assert_allclose(services[0].seconds[[0, 3], 0], [0.0075, 0.0175])
    np.testing.assert_allclose(services[0].cost, 3 * services[0].seconds)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"load": [1.0]}, "below 1"),
        ({"load": []}, "below 1"),
        ({"batch_cost": -1.0}, "must not be below 0"),
        ({"seeds": 0}, "at least 1"),
        ({"budget": [0.5, 1.0]}, "one --budget"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        PoliciesArguments(**flags)
