"""Controls: the mean cost that they are asked for, exactly, and no look at the input."""

import dataclasses

import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.policies.cost import mean_cost
from dpbert_jax.study.controls import (
    PlansByLength,
    best_mix,
    best_static_plan,
    mixed_plans,
    random_plans,
    shuffled_plans,
)
from dpbert_jax.training.plan_bank import all_plans

CONFIG = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=6), PlannerConfig(stem_layers=1))
PLANS = all_plans(CONFIG)


@pytest.mark.parametrize("mean_layers", [1.0, 2.4, 3.0, 4.65, 6.0])
def test_random_plans_have_the_mean_depth_and_two_depths(mean_layers):
    plans = random_plans(CONFIG, 200, mean_layers, seed=0)
    assert plans.sum(axis=1).mean() == pytest.approx(mean_layers, abs=1 / 200)
    assert np.ptp(plans.sum(axis=1)) <= 1
    assert plans[:, 0].all()


def test_random_plans_take_every_layer_alike():
    share = random_plans(CONFIG, 5000, 3.5, seed=1)[:, 1:].mean(axis=0)
    np.testing.assert_allclose(share, 0.5, atol=0.03)


def of_unit(unit):
    return dataclasses.replace(CONFIG, planner=PlannerConfig(stem_layers=1, cost_unit=unit))


@pytest.mark.parametrize("unit", ["rows", "flops"])
def test_shuffled_plans_are_the_same_plans(unit):
    plans, lengths = random_plans(CONFIG, 50, 3.5, seed=0), np.arange(50) % 7
    shuffled = shuffled_plans(of_unit(unit), plans, lengths, seed=1)
    assert (shuffled != plans).any()
    numbers = (np.sort(made @ 2 ** np.arange(6)) for made in (plans, shuffled))
    np.testing.assert_array_equal(*numbers)


def test_plans_that_follow_the_length_cost_the_same_where_they_are_shuffled_among_like_ones():
    config, lengths = of_unit("flops"), np.random.default_rng(0).permutation(np.repeat([9, 60], 80))
    plans = np.ones((160, 6), np.int8)
    plans[lengths == 60, 3:] = 0
    shuffled = shuffled_plans(config, plans, lengths, seed=1)
    costs = [mean_cost(config, made.sum(axis=1), lengths) for made in (plans, shuffled)]
    assert costs[0] == pytest.approx(costs[1])
    spread = shuffled_plans(of_unit("rows"), plans, lengths, seed=1)
    assert mean_cost(config, spread.sum(axis=1), lengths) > costs[0] + 0.5


@pytest.mark.parametrize("mean_gates", [0.0, 1.3, 2.0, 3.7, 5.0])
def test_no_mix_of_three_is_better_than_the_best_of_two(mean_gates):
    random = np.random.default_rng(0)
    losses = random.random(len(PLANS)) - 0.1 * PLANS.sum(axis=1)
    mix = best_mix(PLANS, losses, mean_gates)
    at = {plan.tobytes(): loss for plan, loss in zip(PLANS, losses, strict=True)}
    least = (1 - mix.share) * at[mix.cheap.tobytes()] + mix.share * at[mix.dear.tobytes()]
    gates = (1 - mix.share) * mix.cheap.sum() + mix.share * mix.dear.sum()
    assert gates == pytest.approx(mean_gates)
    for _ in range(2000):
        three = random.choice(len(PLANS), 3)
        weights = random.dirichlet(np.ones(3))
        depth = weights @ PLANS[three].sum(axis=1)
        if abs(depth - mean_gates) < 0.02:
            assert weights @ losses[three] > least - 0.02


def losses_by_length(rows, seed):
    """Long rows need their layers, short ones do not; lengths from 5 to 60."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, 61, rows)
    skipped = PLANS.shape[1] - PLANS.sum(axis=1)
    noise = 0.05 * random.random((rows, len(PLANS)))
    return lengths, skipped * (lengths[:, None] / 60) ** 2 + noise


@pytest.mark.parametrize("mean_gates", [0.5, 1.3, 2.5, 4.4])
def test_plans_by_length_meet_the_mean_and_give_to_those_who_need(mean_gates):
    lengths, losses = losses_by_length(800, 0)
    by_length = PlansByLength.of(PLANS, losses, lengths)
    others, their_losses = losses_by_length(400, 1)
    plans = by_length.plans_of(CONFIG, others, mean_gates, seed=3)
    gates = plans[:, 1:]
    assert gates.sum(axis=1).mean() == pytest.approx(mean_gates, abs=5 / 400)
    assert gates[others > 45].sum(axis=1).mean() > gates[others < 20].sum(axis=1).mean() + 0.4
    number = {plan.tobytes(): i for i, plan in enumerate(PLANS.astype(np.int8))}
    taken = their_losses[np.arange(400), [number[plan.tobytes()] for plan in gates]]
    mix = best_mix(PLANS, losses.mean(axis=0), float(gates.sum(axis=1).mean()))
    blind = mixed_plans(CONFIG, mix, 400, 3)[:, 1:]
    assert taken.mean() < their_losses[np.arange(400), [number[p.tobytes()] for p in blind]].mean()


def test_plans_by_length_meet_a_mean_of_flops_and_spend_it_where_it_is_cheap():
    config = of_unit("flops")
    lengths, losses = losses_by_length(800, 0)
    losses = losses / (lengths[:, None] / 60) ** 2  # a layer is worth as much to short rows
    by_length = PlansByLength.of(PLANS, losses, lengths)
    gates = by_length.plans_of(config, lengths, 2.5, seed=3)[:, 1:].sum(axis=1)
    assert mean_cost(config, gates, lengths) == pytest.approx(2.5, abs=5 / 200)
    assert gates[lengths < 20].mean() > gates[lengths > 45].mean() + 2


def test_lengths_that_tell_nothing_choose_hardly_anything():
    """Of losses by chance alone nearly nothing is kept of what tells groups apart."""
    kept = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        losses, lengths = random.exponential(1.0, (400, len(PLANS))), random.integers(5, 60, 400)
        means = PlansByLength.of(PLANS, losses, lengths).losses
        group = np.searchsorted(PlansByLength.of(PLANS, losses, lengths).edges, lengths, "right")
        centred = losses - losses.mean(axis=1, keepdims=True)
        raw = np.array([centred[group == g].mean(axis=0) for g in np.unique(group)])
        kept.append(float((means - means.mean(axis=0)).std() / (raw - raw.mean(axis=0)).std()))
    assert np.mean(kept) < 0.3


def test_few_rows_are_one_group():
    lengths, losses = losses_by_length(60, 0)
    by_length = PlansByLength.of(PLANS, losses, lengths)
    assert len(by_length.edges) == 0 and by_length.losses.shape == (1, len(PLANS))
    mix = best_mix(PLANS, losses.mean(axis=0), 2.0)
    plans = by_length.plans_of(CONFIG, lengths, 2.0, seed=0)
    assert plans[:, 1:].sum(axis=1).mean() == pytest.approx(2.0)
    assert mix.cheap.sum() <= 2 <= mix.dear.sum()


def test_mixed_plans_are_the_mixs_two():
    mix = best_mix(PLANS, -PLANS.sum(axis=1), 2.5)
    plans = mixed_plans(CONFIG, mix, 100, seed=0)
    assert plans.sum(axis=1).mean() == pytest.approx(3.5, abs=0.03)
    wanted = {tuple(np.concatenate([[1], gates])) for gates in (mix.cheap, mix.dear)}
    assert {tuple(plan) for plan in plans} == wanted


def test_the_best_static_plan():
    losses = np.ones(len(PLANS))
    wanted = np.array([1, 0, 1, 0, 0], np.float32)
    losses[(wanted == PLANS).all(axis=1)] = 0.5
    losses[PLANS.sum(axis=1) == 3] = 0.0
    np.testing.assert_array_equal(best_static_plan(PLANS, losses, 2), wanted)
