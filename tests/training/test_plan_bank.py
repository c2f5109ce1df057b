"""The plans of a table, and the best chain among them."""

import dataclasses
from itertools import permutations

import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.training.plan_bank import (
    KEPT_PER_DEPTH,
    all_plans,
    best_chain,
    best_of_each_depth,
    drawn_plans,
)


def planned(layers=4, **planner):
    bert = dataclasses.replace(TINY, num_hidden_layers=layers)
    return DPBertConfig(bert, PlannerConfig(**{"stem_layers": 1, "min_layers": 0, **planner}))


@pytest.mark.parametrize(("min_layers", "count"), [(0, 8), (1, 8), (2, 7), (4, 1)])
def test_all_plans_have_the_depth_floor(min_layers, count):
    plans = all_plans(planned(min_layers=min_layers))
    assert len(np.unique(plans, axis=0)) == len(plans) == count
    assert (1 + plans.sum(axis=1)).min() >= min_layers


def test_drawn_plans_are_of_every_depth_and_follow_the_preference():
    config = planned(layers=12, min_layers=4)
    preference = np.linspace(3, -3, 11)
    plans = drawn_plans(config, preference, seed=0)
    np.testing.assert_array_equal(np.unique(plans.sum(axis=1)), np.arange(3, 12))
    assert len(np.unique(plans, axis=0)) == len(plans)
    share = plans.mean(axis=0)
    assert share[:4].mean() > share[-4:].mean() + 0.2


def test_drawn_plans_are_in_chains():
    plans = drawn_plans(planned(layers=12), np.zeros(11), seed=0)
    for plan in plans[plans.sum(axis=1) < 11]:
        larger = plans[plans.sum(axis=1) == plan.sum() + 1]
        assert (larger >= plan).all(axis=1).any()


def test_the_best_of_each_depth_are_kept_and_a_chain():
    config = planned(layers=12)
    plans = drawn_plans(config, np.zeros(11), seed=0)
    losses = np.random.default_rng(0).random(len(plans))
    kept = best_of_each_depth(config, plans, losses)
    chain = {tuple(plan) for plan in plans[best_chain(config, plans, losses)]}
    for depth in range(12):
        best = np.argsort(np.where(plans.sum(axis=1) == depth, losses, np.inf))[:KEPT_PER_DEPTH]
        wanted = {tuple(plans[i]) for i in best if plans[i].sum() == depth}
        found = {tuple(plan) for plan in kept if plan.sum() == depth}
        assert wanted <= found <= wanted | chain
    assert chain <= {tuple(plan) for plan in kept} <= {tuple(plan) for plan in plans}


@pytest.mark.parametrize("min_layers", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_chain_is_the_best_of_all_orders(seed, min_layers):
    config = planned(layers=6, min_layers=min_layers, min_budget=0.5, max_budget=5 / 6)
    plans = all_plans(config)
    losses = np.random.default_rng(seed).random(len(plans))
    number = {tuple(plan): i for i, plan in enumerate(plans.astype(int))}

    def of_order(order):
        depths = range(config.min_gates, 6)
        return [number[tuple(int(g in order[:k]) for g in range(5))] for k in depths]

    # Budgets 0.5 to 5/6 ask for 2 to 4 planned layers, the outer two depths half as often.
    weights = np.array([0, 0, 0.25, 0.5, 0.25, 0])[config.min_gates :]
    best = min(weights @ losses[of_order(order)] for order in permutations(range(5)))
    chain = best_chain(config, plans, losses)
    assert (np.diff(plans[chain], axis=0) >= 0).all()
    np.testing.assert_array_equal(plans[chain].sum(axis=1), np.arange(config.min_gates, 6))
    assert weights @ losses[chain] == pytest.approx(best, abs=0.01)
