"""The objectives against formulas written out, whole batches and inference."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr, softmax

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.encoder.operations import fold_rows
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.policies.cost import row_weights
from dpbert_jax.policies.dpbert import DPBert
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dpbert_jax.training.objective import (
    final_forward,
    joint_forward,
    planned_rows,
    row_losses,
    score_sums,
    share_of_gates,
    stage_loss,
    threshold_grid,
)
from dpbert_jax.training.step import Moment

ROWS = 8
BERT = dataclasses.replace(
    TINY, num_hidden_layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
)
CALIBRATION = Calibration((0.4, 0.7, 1.0), (1.5, -0.5, -6.0))
CONFIG = DPBertConfig(BERT, PlannerConfig(), CALIBRATION)
KEY = jax.random.key(5)


def row_keys(rows=ROWS):
    return Moment(KEY, 0.0, rows).row_keys(jnp.arange(rows))


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
    losses = row_losses(jnp.asarray(logits[0]), jnp.asarray(LABELS), None, SINGLE_LABEL)
    wanted = -log_softmax(logits[0], axis=1)[np.arange(5), LABELS]
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


def test_distillation_by_hand(logits):
    """Half cross-entropy, half KL(teacher || student) at temperature 2, times its square."""
    student, teacher = logits
    losses = row_losses(
        jnp.asarray(student), jnp.asarray(LABELS), jnp.asarray(teacher), SINGLE_LABEL
    )
    cross_entropy = -log_softmax(student, axis=1)[np.arange(5), LABELS]
    divergence = rel_entr(softmax(teacher / 2, axis=1), softmax(student / 2, axis=1)).sum(axis=1)
    np.testing.assert_allclose(losses, 0.5 * cross_entropy + 0.5 * 4 * divergence, rtol=1e-5)


def test_a_student_that_is_its_teacher_has_no_distillation_loss(logits):
    same = jnp.asarray(logits[0])
    task = row_losses(same, jnp.asarray(LABELS), None, SINGLE_LABEL)
    np.testing.assert_allclose(
        row_losses(same, jnp.asarray(LABELS), same, SINGLE_LABEL), task / 2, rtol=1e-5
    )


def test_a_row_without_label_learns_from_the_teacher_alone(logits):
    student, teacher = map(jnp.asarray, logits)
    about = student, jnp.asarray(LABELS), teacher, SINGLE_LABEL
    every = row_losses(*about)
    labelled = np.array([1, 0, 1, 0, 0], np.float32)
    found = row_losses(*about, jnp.asarray(labelled))
    divergence = 2 * every - row_losses(student, jnp.asarray(LABELS), None, SINGLE_LABEL)
    np.testing.assert_allclose(found, np.where(labelled, every, divergence), rtol=1e-5)


def test_a_stage_learns_nothing_from_the_labels_of_rows_that_have_none(params, batch):
    stage = partial(stage_loss, final_forward, DPBert(CONFIG), params)
    moment = Moment(KEY, 0.5, ROWS, threshold_grid(CONFIG))
    none = {**batch, "labelled": jnp.zeros(ROWS)}
    other = {**none, "labels": 1 - batch["labels"]}
    assert stage(none, moment)[0] == stage(other, moment)[0] != stage(batch, moment)[0]


def test_several_labels_by_hand(logits):
    """Each label is a choice of two; the loss is their mean."""
    student, teacher = logits
    labels = np.random.default_rng(1).integers(0, 2, (5, 3)).astype(np.float32)
    task = -np.log(np.where(labels > 0, expit(student), expit(-student))).mean(axis=1)
    found = row_losses(jnp.asarray(student), jnp.asarray(labels), None, MULTI_LABEL)
    np.testing.assert_allclose(found, task, rtol=1e-5)
    yes, said = expit(teacher / 2), expit(student / 2)
    divergence = (rel_entr(yes, said) + rel_entr(1 - yes, 1 - said)).mean(axis=1)
    found = row_losses(jnp.asarray(student), jnp.asarray(labels), jnp.asarray(teacher), MULTI_LABEL)
    np.testing.assert_allclose(found, 0.5 * task + 0.5 * 4 * divergence, rtol=1e-4)
    sums = score_sums(jnp.asarray(student), jnp.asarray(labels), jnp.ones(5), MULTI_LABEL)
    assert float(sums["correct"]) == pytest.approx(5 * ((student > 0) == labels).mean())


def test_regression_by_hand(logits):
    student, teacher = logits[:, :, :1]
    scores = np.array([0.5, 1.5, -2.0, 0.0, 5.0], np.float32)
    task = (student[:, 0] - scores) ** 2
    found = row_losses(jnp.asarray(student), jnp.asarray(scores), None, REGRESSION)
    np.testing.assert_allclose(found, task, rtol=1e-5)
    found = row_losses(jnp.asarray(student), jnp.asarray(scores), jnp.asarray(teacher), REGRESSION)
    np.testing.assert_allclose(found, (task + (student - teacher)[:, 0] ** 2) / 2, rtol=1e-5)


def sharded(function, batch, shards):
    """Maps over shards of the batch as pmap does, and adds up what they give."""
    split = {k: v.reshape(shards, ROWS // shards, *v.shape[1:]) for k, v in batch.items()}
    found = jax.jit(jax.vmap(function, axis_name="batch"))(split)
    return jax.tree.map(lambda x: x.sum(axis=0), found)


def test_joint_gradient_does_not_depend_on_the_shards(params, batch):
    """The threshold that meets the budget is one for all of them, and so is its derivative."""
    loss = partial(stage_loss, joint_forward, DPBert(CONFIG))

    def gradient(shard):
        moment = Moment(KEY, jnp.float32(0.5), batch["weights"].sum())
        return jax.grad(loss, has_aux=True)(params, shard, moment)

    (one, sums), (four, parts) = (sharded(gradient, batch, shards) for shards in (1, 4))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), four, one)
    assert parts["loss"] == pytest.approx(float(sums["loss"]), rel=1e-5)
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(four["planner"]))


@pytest.mark.parametrize("unit", ["rows", "flops"])
def test_joint_gates_cost_the_budget_on_average(params, batch, unit):
    """Many draws of one step's gates: their mean is the share that the step's budget pays for."""
    config = dataclasses.replace(CONFIG, planner=PlannerConfig(cost_unit=unit))
    moment, lowest = Moment(KEY, jnp.float32(0.5), ROWS), config.planner.min_budget

    @jax.jit
    def gates(draw):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, draw))(row_keys())
        forward = partial(joint_forward, DPBert(config), params)
        mapped = jax.vmap(lambda b: forward(b, keys, moment), axis_name="batch")
        return mapped(jax.tree.map(lambda x: x[None], batch)).gates[0]

    lengths = np.asarray(batch["attention_mask"].sum(axis=1))
    counted = batch["weights"] * planned_rows(batch["positions"]) * row_weights(config, lengths)
    each = np.mean([gates(draw).mean(axis=1) for draw in range(300)], axis=0)
    mean = np.average(each, weights=np.asarray(counted))
    budget = jax.random.uniform(KEY, minval=lowest, maxval=1.0)
    wanted = share_of_gates(config, budget, batch["input_ids"].shape[1])
    assert mean == pytest.approx(float(wanted), abs=0.03)


@pytest.fixture(scope="module")
def shy_params(params):
    """A planner that wants to run nothing."""
    output = {**params["planner"]["output"], "bias": jnp.full(CONFIG.num_gates, -50.0)}
    return {**params, "planner": {**params["planner"], "output": output}}


def forward(stage_forward, params, batch):
    """One shard holds all rows."""
    moment = Moment(KEY, jnp.float32(0.5), ROWS, threshold_grid(CONFIG))

    def run(batch):
        return stage_forward(DPBert(CONFIG), params, batch, row_keys(), moment)

    mapped = jax.vmap(run, axis_name="batch")(jax.tree.map(lambda x: x[None], batch))
    return jax.tree.map(lambda x: x[0], mapped)


@pytest.mark.parametrize("stage_forward", [joint_forward, final_forward])
def test_every_fourth_row_runs_all_layers(stage_forward, shy_params, batch):
    out = jax.jit(partial(forward, stage_forward))(shy_params, batch)
    full = np.arange(ROWS) % 4 == 0
    np.testing.assert_array_equal(out.gates[full], 1)
    assert (np.asarray(out.gates[~full]) == 0).any()


def test_final_plans_are_those_of_inference(params, batch):
    """Each planned row's plan is what an executor gives that row at that row's budget."""
    out = jax.jit(partial(forward, final_forward))(params, batch)
    low = CONFIG.planner.min_budget
    draw = jax.vmap(lambda key: low + (1 - low) * jax.random.uniform(key) ** 2)
    budgets = np.where(np.arange(ROWS) % 4, draw(fold_rows(row_keys(), 1)), 1.0)
    execute = make_executor("masked", CONFIG, params)
    names = ("input_ids", "attention_mask", "token_type_ids")
    for row, budget in enumerate(budgets):
        inputs = {name: np.asarray(batch[name][row : row + 1]) for name in names}
        served = execute(inputs, resolve_rule(CONFIG, float(budget)))
        np.testing.assert_array_equal(out.gates[row], served.layer_mask[0, CONFIG.stem_layers :])
    assert len(np.unique(out.gates, axis=0)) > 1
