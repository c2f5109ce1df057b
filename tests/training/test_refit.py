"""The refit planner: rules that it has to find, and ones that are not there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.policies.planner import LENGTH, judge
from dpbert_jax.training.plan_bank import all_plans, best_chain, drawn_plans
from dpbert_jax.training.plan_table import PlanTable
from dpbert_jax.training.refit import refit_planner

CONFIG = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=4), PlannerConfig())


@pytest.fixture(scope="module")
def two_kinds():
    """Rows whose first feature tells whether they need planned layer 0 or planned layer 2."""
    random = np.random.default_rng(0)
    kind = random.integers(0, 2, 400)
    features = random.standard_normal((400, 2 * TINY.hidden_size + 1)).astype(np.float32)
    features[:, 0] = 30.0 + 3 * (2 * kind - 1)  # far from the origin
    plans = all_plans(CONFIG)
    served = np.where(kind[:, None] > 0, plans[None, :, 2], plans[None, :, 0])
    table = PlanTable(plans, np.zeros((400, 8, 2)), features, np.full(400, 16))
    return kind, table, (1 - served).astype(np.float32)


def test_it_finds_which_rows_need_which_layer(two_kinds):
    kind, table, losses = two_kinds
    planner = refit_planner(CONFIG, table, losses, seed=0)
    logits = np.asarray(judge(CONFIG, planner, jnp.asarray(table.features)))
    chosen = logits.argmax(axis=1)
    assert (chosen == np.where(kind > 0, 2, 0)).mean() > 0.95


@pytest.fixture(scope="module")
def hard_and_easy(two_kinds):
    """Rows whose first feature tells whether each layer saves them something, or nothing does."""
    hard, table, _ = two_kinds
    saved = table.plans.sum(axis=1) / CONFIG.num_gates
    return hard, table, np.where(hard[:, None] > 0, 1 - saved, 0.0).astype(np.float32)


def test_it_finds_which_rows_need_more_layers(hard_and_easy):
    hard, table, losses = hard_and_easy
    planner = refit_planner(CONFIG, table, losses, seed=0)
    logits = np.asarray(judge(CONFIG, planner, jnp.asarray(table.features)))
    assert logits[hard > 0].min() - logits[hard == 0].max() > 1.0


def test_rows_are_told_apart_only_where_it_pays():
    """Two layers are dear to lose and a third is worth little: at two layers' budget all run two.

    One feature tells, with noise, how dear a row is, so the dear ones come first at less than that.
    """
    random, plans = np.random.default_rng(0), all_plans(CONFIG)
    features = random.standard_normal((400, 2 * TINY.hidden_size + 1)).astype(np.float32)
    dear = np.exp(0.4 * features[:, 0] + 0.5 * random.standard_normal(400))
    left = np.array([2.0, 1.0, 0.1])[plans[:, :2].sum(axis=1).astype(int)]
    left[(plans == 1).all(axis=1)] = 0.08
    table = PlanTable(plans, np.zeros((400, 8, 2)), features, np.full(400, 16))
    planner = refit_planner(CONFIG, table, np.outer(dear, left).astype(np.float32), seed=0)
    logits = np.asarray(judge(CONFIG, planner, jnp.asarray(features)))
    third, second, _ = np.sort(logits, axis=1).T
    assert second.min() > third.max()
    assert np.corrcoef(second, features[:, 0])[0, 1] > 0.8


@pytest.mark.parametrize("unit", ["rows", "flops"])
def test_layers_go_to_short_rows_where_flops_are_counted(hard_and_easy, unit):
    """All rows gain alike by a layer; the first feature tells the long ones."""
    long, table, losses = hard_and_easy
    gain = np.random.default_rng(1).uniform(0.9, 1.1, (len(losses), 1)).astype(np.float32)
    losses = gain * losses[long > 0][0]
    table = table._replace(lengths=np.where(long > 0, 60, 10))
    config = dataclasses.replace(CONFIG, planner=PlannerConfig(cost_unit=unit))
    planner = refit_planner(config, table, losses, seed=0)
    logits = np.asarray(judge(config, planner, jnp.asarray(table.features)))
    lead = logits[long == 0].mean() - logits[long > 0].mean()
    assert lead > 1.0 if unit == "flops" else abs(lead) < 0.3


def test_layers_come_in_the_order_that_serves_the_rows_of_each_depth(hard_and_easy):
    """Short rows have all layers; so what comes first is what the long ones need, not the mean."""
    long, table, _ = hard_and_easy
    flops = PlannerConfig(cost_unit="flops")
    deep = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=10), flops)
    forth = np.tril(np.ones((10, 9), np.float32), -1)  # chains: first to last layer, or back
    plans = np.unique(np.concatenate([forth, forth[:, ::-1]]), axis=0)
    short_saved, long_saved = np.repeat([2.0, 0.5], [3, 6]), np.repeat([0.1, 0.5], [6, 3])
    saved = np.where(long[:, None] > 0, plans @ long_saved, plans @ short_saved)
    losses = (10 - saved).astype(np.float32)
    assert plans[best_chain(deep, plans, losses.mean(axis=0))[1], 0] == 1
    lengths = np.where(long > 0, 60, 10)
    table = PlanTable(plans, np.zeros((400, len(plans), 2)), table.features, lengths)
    planner = refit_planner(deep, table, losses, seed=0)
    logits = np.asarray(judge(deep, planner, jnp.asarray(table.features)))
    assert (np.diff(logits, axis=1) >= 0).all(), "the last layer comes first"
    assert logits[long == 0].min() > logits[long > 0].mean()


def test_features_that_say_nothing_are_left_aside(hard_and_easy):
    _, table, losses = hard_and_easy
    noise = np.random.default_rng(5).standard_normal(table.features.shape).astype(np.float32)
    planner = refit_planner(CONFIG, table._replace(features=noise), losses, seed=0)
    logits = np.asarray(judge(CONFIG, planner, jnp.asarray(noise)))
    assert 0 < logits.std(axis=0).max() < 0.01


def test_content_is_read_only_where_it_tells_more_than_the_length(hard_and_easy):
    """The length tells which rows need layers; content is noise, and parts rows of one length."""
    hard, table, losses = hard_and_easy
    random = np.random.default_rng(2)
    features = random.standard_normal(table.features.shape).astype(np.float32)
    features[:, LENGTH] = hard + 0.1 * random.standard_normal(len(hard))
    planner = refit_planner(CONFIG, table._replace(features=features), losses, seed=0)
    other = random.standard_normal(table.features.shape).astype(np.float32)
    other[:, LENGTH] = features[:, LENGTH]
    logits, beside = (np.asarray(judge(CONFIG, planner, jnp.asarray(f))) for f in (features, other))
    assert logits[hard > 0].min() - logits[hard == 0].max() > 1
    assert 0 < np.abs(logits - beside).max() < 0.01


def test_rows_of_one_length_are_told_apart_by_content_or_not_at_all(hard_and_easy):
    hard, table, losses = hard_and_easy
    features = table.features.copy()
    features[:, LENGTH] = -1.0
    planner = refit_planner(CONFIG, table._replace(features=features), losses, seed=0)
    other = features.copy()
    other[:, LENGTH] = 4.0
    logits, longer = (np.asarray(judge(CONFIG, planner, jnp.asarray(f))) for f in (features, other))
    assert logits[hard > 0].min() - logits[hard == 0].max() > 1
    np.testing.assert_array_equal(logits, longer)


def test_a_single_row_tells_nothing_of_others(hard_and_easy):
    _, (plans, logits, features, lengths), losses = hard_and_easy
    one = PlanTable(plans, logits[:1], features[:1], lengths[:1])
    planner = refit_planner(CONFIG, one, losses[:1], seed=0)
    found = np.asarray(judge(CONFIG, planner, jnp.asarray(features)))
    assert np.isfinite(found).all() and not np.ptp(found, axis=0).any()


def test_with_nine_planned_layers_every_row_follows_one_chain_of_the_bank():
    """Its plans are the ones whose worth is known; how far a row goes is told by its features."""
    deep = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=10), PlannerConfig())
    plans, random = drawn_plans(deep, np.zeros(9), seed=0), np.random.default_rng(0)
    features = random.standard_normal((200, 2 * TINY.hidden_size + 1)).astype(np.float32)
    left = 1 - plans.sum(axis=1) / 9 + 0.3 * random.random(len(plans))
    losses = np.outer(np.exp(features[:, 0]), left).astype(np.float32)
    table = PlanTable(plans, np.zeros((200, len(plans), 2)), features, np.full(200, 16))
    planner = refit_planner(deep, table, losses, seed=0)
    logits = np.asarray(judge(deep, planner, jnp.asarray(features)))
    order = np.argsort(-logits.mean(axis=0))
    assert (np.diff(logits[:, order], axis=1) <= 0).all()
    bank = {tuple(plan) for plan in plans.astype(int)}
    for depth in range(deep.min_gates, 10):
        assert tuple(int(layer in order[:depth]) for layer in range(9)) in bank
    assert np.corrcoef(logits.mean(axis=1), features[:, 0])[0, 1] > 0.8


def test_the_same_seed_gives_the_same_planner(two_kinds):
    _, table, losses = two_kinds
    one, other = (refit_planner(CONFIG, table, losses, seed=3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, other)
