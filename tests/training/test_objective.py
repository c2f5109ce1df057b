"""The objectives against formulas written out, whole batches and inference."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.model import DPBert
from dpbert_jax.model.bert import fold_rows
from dpbert_jax.model.cost import plan_cost
from dpbert_jax.training.objective import (
    COST_WEIGHT,
    final_forward,
    joint_forward,
    planned_rows,
    row_losses,
    stage_loss,
)

ROWS = 8
BERT = dataclasses.replace(
    TINY, num_hidden_layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
)
CALIBRATION = Calibration((0.4, 0.7, 1.0), (1.5, -0.5, -6.0))
CONFIG = DPBertConfig(BERT, PlannerConfig(), CALIBRATION)
KEY = jax.random.key(5)


def row_keys(rows=ROWS):
    return jax.vmap(lambda position: jax.random.fold_in(KEY, position))(jnp.arange(rows))


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(CONFIG, seed=1)


@pytest.fixture(scope="module")
def batch(random_batch):
    random = np.random.default_rng(0)
    made = {
        **random_batch(ROWS),
        "labels": random.integers(0, 2, ROWS, np.int32),
        "teacher_logits": random.standard_normal((ROWS, 2), np.float32),
        "weights": (np.arange(ROWS) < 7).astype(np.float32),
        "positions": np.arange(ROWS, dtype=np.int32),
    }
    return jax.tree.map(jnp.asarray, made)


@pytest.fixture(scope="module")
def logits():
    random = np.random.default_rng(3)
    return 2 * random.standard_normal((2, 5, 3)).astype(np.float32)


LABELS = np.array([0, 1, 2, 1, 0], np.int32)


def test_cross_entropy_by_hand(logits):
    losses = row_losses(jnp.asarray(logits[0]), jnp.asarray(LABELS), None, False)
    wanted = -log_softmax(logits[0], axis=1)[np.arange(5), LABELS]
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


def test_distillation_by_hand(logits):
    """Half cross-entropy, half KL(teacher || student) at temperature 2, times its square."""
    student, teacher = logits
    losses = row_losses(jnp.asarray(student), jnp.asarray(LABELS), jnp.asarray(teacher), False)
    cross_entropy = -log_softmax(student, axis=1)[np.arange(5), LABELS]
    divergence = rel_entr(softmax(teacher / 2, axis=1), softmax(student / 2, axis=1)).sum(axis=1)
    np.testing.assert_allclose(losses, 0.5 * cross_entropy + 0.5 * 4 * divergence, rtol=1e-5)


def test_a_student_that_is_its_teacher_has_no_distillation_loss(logits):
    same = jnp.asarray(logits[0])
    task = row_losses(same, jnp.asarray(LABELS), None, False)
    np.testing.assert_allclose(
        row_losses(same, jnp.asarray(LABELS), same, False), task / 2, rtol=1e-5
    )


def test_regression_by_hand(logits):
    student, teacher = logits[:, :, :1]
    scores = np.array([0.5, 1.5, -2.0, 0.0, 5.0], np.float32)
    task = (student[:, 0] - scores) ** 2
    found = row_losses(jnp.asarray(student), jnp.asarray(scores), None, True)
    np.testing.assert_allclose(found, task, rtol=1e-5)
    found = row_losses(jnp.asarray(student), jnp.asarray(scores), jnp.asarray(teacher), True)
    np.testing.assert_allclose(found, (task + (student - teacher)[:, 0] ** 2) / 2, rtol=1e-5)


def test_joint_gradient_is_that_of_the_formula_on_the_whole_batch(params, batch):
    """task + COST_WEIGHT (mean cost - budget)^2, though the batch is split over four shards."""
    model, progress, shards = DPBert(CONFIG), jnp.float32(0.5), 4

    def formula(params):
        out = joint_forward(model, params, batch, row_keys(), KEY, progress)
        losses = row_losses(out.logits, batch["labels"], batch["teacher_logits"], False)
        weights = batch["weights"]
        cost = plan_cost(CONFIG, out.expected_gates, batch["input_ids"].shape[1])
        counted = weights * planned_rows(batch["positions"])
        mean_cost = (counted * cost).sum() / counted.sum()
        task = (weights * losses).sum() / weights.sum()
        return task + COST_WEIGHT * (mean_cost - out.budget) ** 2

    counted = batch["weights"] * np.asarray(planned_rows(batch["positions"]))
    totals = {"weights": batch["weights"].sum(), "planned": counted.sum(), "share": 1.0}
    totals = jax.tree.map(jnp.float32, totals)

    def sharded(params, shard):
        loss = partial(stage_loss, "joint", model)
        return jax.grad(loss, has_aux=True)(params, shard, KEY, progress, totals, "batch")

    shard = {k: v.reshape(shards, ROWS // shards, *v.shape[1:]) for k, v in batch.items()}
    mapped = jax.jit(jax.vmap(sharded, in_axes=(None, 0), axis_name="batch"))
    total, sums = jax.tree.map(lambda x: x.sum(axis=0), mapped(params, shard))
    value, wanted = jax.jit(jax.value_and_grad(formula))(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), total, wanted)
    assert sums["loss"] + sums["penalty"] == pytest.approx(float(value), rel=1e-5)
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(total["planner"]))


@pytest.fixture(scope="module")
def shy_params(params):
    """A planner that wants to run nothing."""
    output = {**params["planner"]["output"], "bias": jnp.full(CONFIG.num_gates, -50.0)}
    return {**params, "planner": {**params["planner"], "output": output}}


def forward(stage, params, batch):
    args = (DPBert(CONFIG), params, batch, row_keys())
    if stage == "joint":
        return joint_forward(*args, KEY, jnp.float32(0.5))
    return final_forward(*args)


@pytest.mark.parametrize("stage", ["joint", "final"])
def test_every_fourth_row_runs_all_layers(stage, shy_params, batch):
    out = jax.jit(partial(forward, stage))(shy_params, batch)
    full = np.arange(ROWS) % 4 == 0
    np.testing.assert_array_equal(out.gates[full], 1)
    assert (np.asarray(out.gates[~full]) == 0).mean() > 0.8
    np.testing.assert_array_equal(out.planned, ~full)


def test_final_plans_are_those_of_inference(params, batch):
    """Each planned row's plan is what an executor gives that row at that row's budget."""
    out = jax.jit(partial(forward, "final"))(params, batch)
    low = CONFIG.planner.min_budget
    draw = jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=1.0))
    budgets = np.where(out.planned, draw(fold_rows(row_keys(), 1)), 1.0)
    execute = make_executor("masked", CONFIG, params)
    names = ("input_ids", "attention_mask", "token_type_ids")
    for row, budget in enumerate(budgets):
        inputs = {name: np.asarray(batch[name][row : row + 1]) for name in names}
        served = execute(inputs, resolve_rule(CONFIG, float(budget)))
        np.testing.assert_array_equal(out.gates[row], served.layer_mask[0, CONFIG.stem_layers :])
    assert len(np.unique(out.gates, axis=0)) > 1
