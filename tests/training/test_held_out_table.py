"""The table of held-out rows: its losses by scipy, its plans of a deep model."""

import dataclasses

import numpy as np
from scipy.special import expit, rel_entr, softmax

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dpbert_jax.training.held_out_table import held_out_table, plan_losses
from dpbert_jax.training.plan_bank import all_plans, best_chain
from dpbert_jax.training.plan_table import PlanTable, make_table

CONFIG = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=4), PlannerConfig())


def test_plan_losses_are_scipys_divergence_from_the_teacher():
    random = np.random.default_rng(2)
    logits, teacher = random.standard_normal((5, 8, 3)), random.standard_normal((5, 3))
    logits[:, 6] = teacher + 1.0  # the teacher's probabilities
    table = PlanTable(all_plans(CONFIG), logits.astype(np.float32), np.zeros((5, 1)), np.ones(5))
    found = plan_losses(table.logits, teacher.astype(np.float32), SINGLE_LABEL)
    wanted = rel_entr(softmax(teacher[:, None], axis=2), softmax(logits, axis=2)).sum(axis=2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(found[:, 6], 0, atol=1e-6)


def test_plan_losses_of_several_labels_are_the_mean_divergence_of_each():
    random = np.random.default_rng(2)
    logits, teacher = random.standard_normal((5, 8, 3)), random.standard_normal((5, 3))
    logits[:, 6] = teacher
    table = PlanTable(all_plans(CONFIG), logits.astype(np.float32), np.zeros((5, 1)), np.ones(5))
    found = plan_losses(table.logits, teacher.astype(np.float32), MULTI_LABEL)
    yes, said = expit(teacher)[:, None], expit(logits)
    wanted = (rel_entr(yes, said) + rel_entr(1 - yes, 1 - said)).mean(axis=2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(found[:, 6], 0, atol=1e-6)


def test_plan_losses_of_a_regression_are_squared_differences():
    logits, teacher = np.array([[[1.0], [3.0]], [[0.5], [-2.0]]]), np.array([[1.0], [0.0]])
    table = PlanTable(all_plans(CONFIG)[:2], logits, np.zeros((2, 1)), np.ones(2))
    np.testing.assert_allclose(plan_losses(table.logits, teacher, REGRESSION), [[0, 4], [0.25, 4]])


def test_a_deep_model_gets_a_bank_of_plans_with_a_chain(random_params, random_split):
    planner = PlannerConfig(stem_layers=1, min_layers=8)
    config = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=10), planner)
    params, split = random_params(config), random_split(9)
    teacher = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    table, losses = held_out_table(config, params, split, teacher, max_seq_length=16, seed=0)
    assert len(table.plans) < 2**9 and len(np.unique(table.plans, axis=0)) == len(table.plans)
    np.testing.assert_array_equal(np.unique(table.plans.sum(axis=1)), [7, 8, 9])
    chain = table.plans[best_chain(config, table.plans, losses.mean(axis=0))]
    np.testing.assert_array_equal(chain.sum(axis=1), [7, 8, 9])
    again = make_table(config, params, split, table.plans, max_seq_length=16)
    np.testing.assert_allclose(losses, plan_losses(again.logits, teacher, SINGLE_LABEL), atol=1e-6)
