"""The plan table is what an executor gives, plan by plan."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.evaluation.plan_table import (
    KEPT_PER_DEPTH,
    all_plans,
    best_of_each_depth,
    drawn_plans,
    make_table,
)
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.model.planner import Planner


def planned(layers=4, stem=1, min_layers=0):
    bert = dataclasses.replace(TINY, num_hidden_layers=layers)
    return DPBertConfig(bert, PlannerConfig(stem, min_layers=min_layers))


@pytest.mark.parametrize("stem", [0, 1])
def test_every_plan_of_every_row_is_what_masked_gives(stem, random_params, random_split):
    config = planned(stem=stem)
    params, split = random_params(config), random_split(9)
    plans = all_plans(config)
    some = plans[[5, 0, 3, len(plans) - 1]]  # a bank need be neither complete nor sorted
    execute, rule = make_executor("masked", config, params), resolve_rule(config, 1.0)
    for bank in (plans, some):
        table = make_table(config, params, split, bank, max_seq_length=16)
        assert table.logits.shape == (9, len(bank), 2)
        for number, plan in enumerate(bank):
            mask = np.tile(np.concatenate([np.ones(stem), plan]), (9, 1))
            wanted = predict(
                execute, rule, config, split, batch_size=9, max_seq_length=16, layer_mask=mask
            )
            np.testing.assert_allclose(table.logits[:, number], wanted.logits, atol=1e-4)


def test_the_planners_logits_follow_from_the_features(random_params, random_split):
    config = planned()
    params, split = random_params(config), random_split(9)
    table = make_table(config, params, split, all_plans(config)[:1], max_seq_length=16)
    module = Planner(config.planner, config.num_gates)
    found = module.apply({"params": params["planner"]}, jnp.asarray(table.features), method="judge")
    execute = make_executor("masked", config, params)
    mask = (np.arange(16) < split.lengths[:, None]).astype(np.int32)
    ids = np.zeros((9, 16), np.int32)
    types = np.zeros((9, 16), np.int32)
    ids[mask > 0], types[mask > 0] = split.token_ids, split.type_ids
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    output = execute(batch, resolve_rule(config, 1.0))
    np.testing.assert_allclose(found, output.gate_logits, atol=1e-4)


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


def test_the_best_of_each_depth_are_kept():
    config = planned(layers=12)
    plans = drawn_plans(config, np.zeros(11), seed=0)
    losses = np.random.default_rng(0).random((5, len(plans)))
    kept = best_of_each_depth(plans, losses)
    for depth in range(12):
        among = plans.sum(axis=1) == depth
        best = plans[among][np.argsort(losses.mean(axis=0)[among])[:KEPT_PER_DEPTH]]
        np.testing.assert_array_equal(
            np.unique(kept[kept.sum(axis=1) == depth], axis=0), np.unique(best, axis=0)
        )
