"""Plan rules: what is refused, and what a budget buys."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.errors import UserError
from dpbert_jax.inference import PLAN_RULES, resolve_rule
from dpbert_jax.policies.gates import hard_gates
from dpbert_jax.policies.rule import Rule, check_budget

CONFIG = DPBertConfig(TINY, PlannerConfig(stem_layers=1, min_budget=0.4))
FLOORED = DPBertConfig(TINY, PlannerConfig(min_layers=3))
SINGLE = DPBertConfig(TINY, PlannerConfig(min_budget=0.6, max_budget=0.6))
GRID = Calibration((0.4, 0.5, 0.8), (1.5, 0.5, -1.0))
steady = settings(deadline=None, derandomize=True, max_examples=100)


@pytest.mark.parametrize(
    ("config", "budget", "sentence"),
    [
        (CONFIG, 0.0, r"The budget is 0.0, but must lie in \(0, 1\]"),
        (CONFIG, -0.5, r"must lie in \(0, 1\]"),
        (CONFIG, 1.01, r"must lie in \(0, 1\]"),
        (CONFIG, float("nan"), r"must lie in \(0, 1\]"),
        (CONFIG, 0.2, r"the 1 layer\(s\) that every input runs cost 0.250"),
        (FLOORED, 0.6, r"the 3 layer\(s\) that every input runs cost 0.750"),
        (SINGLE, 0.5, r"trained for budgets from 0.6 to 0.6, and for 1.0"),
        (CONFIG, 0.39, r"trained for budgets from 0.4 to 1.0"),
        (DPBertConfig(TINY), 0.5, r"no planner: it can only run dense"),
    ],
)
def test_budgets_refused(config, budget, sentence):
    for plan_rule in PLAN_RULES:
        with pytest.raises(UserError, match=sentence):
            resolve_rule(config, budget, plan_rule)


@pytest.mark.parametrize("budget", [0.4, 0.5, 1.0])
def test_budgets_taken(budget):
    check_budget(CONFIG, budget)
    check_budget(DPBertConfig(TINY), 1.0)


@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_unknown_rule_refused(budget):
    with pytest.raises(UserError, match=r"--plan_rule is 'random', but must be one of"):
        resolve_rule(CONFIG, budget, "random")


def planned(layers, stem):
    """A config of so many layers; not a strategy, since beartype draws random numbers in it."""
    bert = replace(TINY, num_hidden_layers=layers)
    return DPBertConfig(bert, PlannerConfig(stem_layers=stem, min_budget=0.01), GRID)


depths = st.integers(1, 24).flatmap(
    lambda layers: st.tuples(st.just(layers), st.integers(0, layers - 1))
)


@steady
@given(depths, st.data())
def test_top_k_runs_the_floor_of_what_the_budget_pays(depth, data):
    layers, stem = depth
    wanted = data.draw(st.integers(max(stem, 1), layers), label="layers")
    part = data.draw(st.floats(0, 0.99), label="part of the next layer")
    rule = resolve_rule(planned(*depth), min((wanted + part) / layers, 1.0), "top_k")
    assert stem + rule.top_k == wanted
    assert rule.threshold == -np.inf


LOGITS = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (64, 11)), jnp.float32)  # many ties


@pytest.mark.parametrize("layers", range(1, 13))
def test_top_k_is_the_same_number_of_layers_for_every_input(layers):
    rule = resolve_rule(planned(12, 1), layers / 12, "top_k")
    gates = hard_gates(LOGITS, rule.threshold, rule.top_k)
    np.testing.assert_array_equal(1 + gates.sum(axis=1), layers)


@pytest.mark.parametrize("plan_rule", PLAN_RULES)
@pytest.mark.parametrize("shift", [-100, 0, 100])
def test_full_budget_runs_all_layers_whatever_the_logits(plan_rule, shift):
    rule = resolve_rule(planned(12, 1), 1.0, plan_rule)
    assert hard_gates(LOGITS + shift, rule.threshold, rule.top_k).all()


def test_the_threshold_rule_needs_a_calibration():
    with pytest.raises(UserError, match=r"no thresholds .*eval.py --calibrate SPLIT"):
        resolve_rule(CONFIG, 0.5)
    assert resolve_rule(CONFIG, 1.0).top_k == 3


@pytest.mark.parametrize(
    ("budget", "threshold"), [(0.4, 1.5), (0.45, 1.0), (0.5, 0.5), (0.65, -0.25), (0.8, -1.0)]
)
def test_threshold_is_interpolated_between_calibrated_budgets(budget, threshold):
    rule = resolve_rule(replace(CONFIG, calibration=GRID), budget, "threshold")
    assert rule.threshold == pytest.approx(threshold)
    assert (rule.budget, rule.top_k) == (budget, 3)


def test_top_k_does_not_read_the_calibration():
    assert resolve_rule(replace(CONFIG, calibration=GRID), 0.5, "top_k") == Rule(0.5, -np.inf, 1)
