"""Calibration: on the split it was made from, the mean cost is the budget."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpbert_jax.encoder.flops import layer_flops
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.calibration import budget_grid, calibrate, threshold_for
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.policies.cost import mean_cost, planner_share

distinct = st.lists(st.integers(-1000, 1000), min_size=1, max_size=40, unique=True)
derandomized = settings(deadline=None, derandomize=True, max_examples=200)


@derandomized
@given(distinct, st.floats(0, 1))
def test_the_threshold_lets_the_share_asked_for_through(values, share):
    values = np.array(values, np.float32) / 100
    costs = np.ones(len(values))
    reached = (values >= threshold_for(values, share * len(values), costs)).mean()
    assert abs(reached - share) <= 0.5 / len(values) + 1e-9


@derandomized
@given(distinct, st.floats(0, 1), st.integers(0, 9))
def test_gates_may_cost_more_or_less(values, share, seed):
    values = np.array(values, np.float32) / 100
    costs = np.random.default_rng(seed).uniform(0.1, 2, len(values))
    wanted = share * costs.sum()
    paid = costs[values >= threshold_for(values, wanted, costs)].sum()
    assert abs(paid - wanted) <= costs.max() / 2 + 1e-6


@derandomized
@given(distinct, st.floats(-2, 2), st.floats(-2, 2))
def test_a_larger_share_never_raises_the_threshold(values, one, other):
    values = np.array(values, np.float32)
    low, high = sorted([one * len(values), other * len(values)])
    costs = np.ones(len(values))
    assert threshold_for(values, high, costs) <= threshold_for(values, low, costs)


@pytest.mark.parametrize("share, through", [(-0.5, 0), (0.0, 0), (1.0, 3), (1.5, 3)])
def test_a_share_out_of_range_is_none_or_all(share, through):
    values = np.array([0.5, -1.0, 2.0], np.float32)
    assert (values >= threshold_for(values, 3 * share, np.ones(3))).sum() == through


@pytest.mark.parametrize("low", [0.3, 0.4, 0.66, 0.99])
def test_the_grid_goes_from_the_lowest_budget_to_one(low):
    grid = budget_grid(low)
    assert (grid[0], grid[-1]) == (low, 1.0)
    assert (np.diff(grid) > 0).all() and np.diff(grid).max() < 0.04


def test_mean_cost_is_the_budget_on_every_point_of_the_grid(planned_model, random_split):
    config, params = planned_model
    split = random_split(40, seed=1)  # the rows that the thresholds were found on
    execute = make_executor("masked", config, params)
    one_gate = 1 / (len(split) * config.encoder.num_hidden_layers)
    for budget in config.calibration.budgets[:-1]:
        rule = resolve_rule(config, budget)
        made = predict(execute, rule, config, split, batch_size=40, max_seq_length=16)
        assert made.cost.mean() == pytest.approx(budget, abs=one_gate)
    full = resolve_rule(config, 1.0)
    made = predict(execute, full, config, split, batch_size=40, max_seq_length=16)
    assert made.layer_mask.all()
    assert made.cost.mean() == pytest.approx(1 + planner_share(config, split.lengths).mean())


def test_the_traffics_flops_are_the_budget_where_they_are_counted(planned_model, random_split):
    config, params = planned_model
    assert config.planner is not None
    planner = dataclasses.replace(config.planner, cost_unit="flops")
    config, split = dataclasses.replace(config, planner=planner), random_split(40, seed=1)
    found = calibrate(config, params, split, inputs="x", batch_size=40, max_seq_length=16)
    config = dataclasses.replace(config, calibration=found)
    execute = make_executor("masked", config, params)
    each = layer_flops(config.encoder, split.lengths)
    for budget in found.budgets[:-1]:
        rule = resolve_rule(config, budget)
        made = predict(execute, rule, config, split, batch_size=40, max_seq_length=16)
        spent = (
            (made.layer_mask.sum(axis=1) / 4 + planner_share(config, split.lengths)) * each
        ).sum()
        assert spent / each.sum() == pytest.approx(budget, abs=each.max() / each.sum() / 4)
        mean = mean_cost(config, made.cost, split.lengths)
        assert mean == pytest.approx(spent / each.sum(), rel=1e-5)


def test_thresholds_do_not_depend_on_the_batches(planned_model, random_split):
    config, params = planned_model
    split = random_split(40, seed=1)
    other = calibrate(config, params, split, inputs="x", batch_size=16, max_seq_length=16)
    np.testing.assert_allclose(other.thresholds, config.calibration.thresholds, atol=1e-4)
    assert config.calibration.thresholds[-1] == -config.planner.logit_bound


def test_a_larger_budget_runs_all_that_a_smaller_one_did(planned_model, random_split):
    """On rows that the thresholds were not found on, input by input, with a floor on the depth."""
    config, params = planned_model
    planner = dataclasses.replace(config.planner, min_layers=2, min_budget=0.55)
    config = dataclasses.replace(config, planner=planner, calibration=None)
    rows, others = random_split(40, seed=1), random_split(60, seed=9)
    found = calibrate(config, params, rows, inputs="x", batch_size=40, max_seq_length=16)
    config = dataclasses.replace(config, calibration=found)
    execute, before = make_executor("masked", config, params), np.zeros((60, 4))
    for budget in (0.55, 0.6, 0.7, 0.8, 0.9, 1.0):
        rule = resolve_rule(config, budget)
        made = predict(execute, rule, config, others, batch_size=60, max_seq_length=16)
        assert (made.layer_mask >= before).all()
        assert made.layer_mask.sum(axis=1).min() >= 2
        before = made.layer_mask
        if budget < 1:
            own = predict(execute, rule, config, rows, batch_size=40, max_seq_length=16)
            assert own.cost.mean() == pytest.approx(budget, abs=1 / 160 + 1e-6)


def test_a_planner_that_computes_nan_has_no_thresholds(planned_model, random_split):
    config, params = planned_model
    output = params["planner"]["output"]
    broken = {**output, "bias": np.full_like(output["bias"], np.nan)}
    spoilt = {**params, "planner": {**params["planner"], "output": broken}}
    with pytest.raises(UserError, match="NaN or infinity"):
        calibrate(config, spoilt, random_split(8), inputs="x", batch_size=8, max_seq_length=16)
