"""Early exits: the rules by hand, and the last exit is the model itself."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.policies import POLICIES
from dpbert_jax.policies.early_exit import entropy, exits_cost
from dpbert_jax.policies.rule import Rule
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dpbert_jax.study.early_exit import (
    EarlyExitBert,
    entropy_exits,
    exit_logits,
    exit_loss,
    initial_params,
    patience_exits,
)
from dpbert_jax.training.step import Moment

CONFIG = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=3))


def test_the_last_exit_is_the_model(random_params, random_split):
    params, split = random_params(CONFIG), random_split(7)
    exits = initial_params(CONFIG, params)
    logits = exit_logits(CONFIG, exits, split, batch_size=4, max_seq_length=16)
    execute = make_executor("masked", CONFIG, params)
    rule = resolve_rule(CONFIG, 1.0)
    wanted = predict(execute, rule, CONFIG, split, batch_size=4, max_seq_length=16)
    assert logits.shape == (7, 3, 2)
    np.testing.assert_allclose(logits[:, -1], wanted.logits, atol=1e-5)


@pytest.mark.parametrize("method", ["deebert", "pabee"])
def test_what_each_method_trains(method, random_params, random_batch):
    """DeeBERT: the exits before the last, nothing else. PABEE: everything."""
    params = initial_params(CONFIG, random_params(CONFIG))
    batch = {
        **random_batch(4),
        "labels": jnp.array([0, 1, 1, 0]),
        "weights": jnp.ones(4),
        "positions": jnp.arange(4),
    }
    loss = partial(exit_loss, method, CONFIG, jnp.float32)
    gradient, sums = jax.jit(jax.grad(loss, has_aux=True))(
        params, batch, Moment(jax.random.key(0), jnp.float32(0), jnp.float32(4))
    )
    moved = {name for name, part in gradient.items() if any(map(np.any, jax.tree.leaves(part)))}
    wanted = {"exit_0", "exit_1"} if method == "deebert" else set(params)
    assert moved == wanted
    assert sums["rows"] == 4


def certain(*answers):
    """Logits of exits that are sure of a class (0 or 1) or undecided (None); [1, L, 2]."""
    table = {0: (9.0, -9.0), 1: (-9.0, 9.0), None: (0.0, 0.0)}
    return np.array([[table[answer] for answer in answers]])


@pytest.mark.parametrize(
    ("answers", "leaves"), [((None, 1, 1), 1), ((0, 1, 1), 0), ((None, None, None), 2)]
)
def test_entropy_leaves_at_the_first_sure_exit(answers, leaves):
    assert entropy_exits(certain(*answers), 0.3).tolist() == [leaves]


@pytest.mark.parametrize(
    ("answers", "patience", "leaves"),
    [
        ((0, 0, 0, 0), 1, 1),
        ((0, 0, 0, 0), 2, 2),
        ((0, 1, 1, 1), 2, 3),
        ((0, 1, 0, 1), 1, 3),
        ((0, 0, 1, 1), 2, 3),
    ],
)
def test_patience_counts_agreements_in_a_row(answers, patience, leaves):
    assert patience_exits(certain(*answers), patience, None).tolist() == [leaves]


def test_several_labels_leave_by_all_of_them():
    sure, torn = [9.0, -9.0, -9.0], [9.0, -9.0, 0.0]
    logits = np.array([[torn, sure, sure]])
    assert entropy_exits(logits, 0.1, MULTI_LABEL).tolist() == [1]
    other = np.array([[[9.0, -9.0, 1.0], sure, sure, sure]])  # one class leads all along
    assert patience_exits(other, 1, None, MULTI_LABEL).tolist() == [2]
    assert patience_exits(other, 1, None).tolist() == [1]


def test_patience_for_scores_goes_by_a_tolerance():
    logits = np.array([[[1.0], [2.0], [2.1], [2.15]]])
    assert patience_exits(logits, 1, 0.2).tolist() == [2]
    assert patience_exits(logits, 2, 0.2).tolist() == [3]
    assert patience_exits(logits, 1, 5.0).tolist() == [1]


def test_cost_counts_layers_and_the_exits_passed():
    cost = exits_cost(CONFIG, np.array([1, 2, 3]), 16)
    assert cost[0] == pytest.approx(1 / 3)
    assert 2 / 3 < cost[1] < 0.7 and 1 < cost[2] < 1.05
    # Each row at its own length: a head weighs more beside few tokens.
    short, long = exits_cost(CONFIG, np.array([3, 3]), np.array([4, 16]))
    assert short > long == cost[2]


def test_a_frozen_backbone_has_no_dropout(random_params, random_batch):
    params = initial_params(CONFIG, random_params(CONFIG))
    no_head_dropout = dataclasses.replace(CONFIG.encoder, classifier_dropout=0.0)
    model = EarlyExitBert(no_head_dropout)
    keys = jax.random.split(jax.random.key(0), 4)
    batch = jax.tree.map(jnp.asarray, random_batch(4))
    plain = model.apply({"params": params}, **batch)
    frozen = model.apply({"params": params}, **batch, dropout_keys=keys, freeze_backbone=True)
    noisy = model.apply({"params": params}, **batch, dropout_keys=keys)
    np.testing.assert_allclose(frozen, plain, atol=1e-5)
    assert np.abs(noisy - plain).max() > 1e-3


@pytest.mark.parametrize("problem", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
@pytest.mark.parametrize("method", ["deebert", "pabee"])
def test_executed_exits_are_those_of_the_rules(method, problem, random_params, random_split):
    """With layers really skipped, against the rules on all exits' logits."""
    if method == "deebert" and problem == REGRESSION:
        pytest.skip("entropy needs classes")
    labels = 1 if problem == REGRESSION else 3
    encoder = dataclasses.replace(CONFIG.encoder, num_labels=labels, problem_type=problem)
    config, split = DPBertConfig(encoder), random_split(24)
    params = initial_params(config, random_params(config))
    for i in range(3):  # exits that differ somewhat
        other = random_params(config, seed=i)["head"]
        params[f"exit_{i}"] = jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, params["exit_0"], other)
    logits = exit_logits(config, params, split, batch_size=8, max_seq_length=16)
    if method == "deebert":
        first = entropy(jnp.asarray(logits[:, 0]), problem)
        knob = float(np.median(first)) + 1e-3  # half of the rows, and no near tie
        leaves = entropy_exits(logits, knob, problem)
    elif problem == REGRESSION:
        knob = float(np.median(np.abs(np.diff(logits[:, :2, 0], axis=1)))) + 1e-3
        leaves = patience_exits(logits, 1, knob)
    else:
        knob = 1.0
        leaves = patience_exits(logits, 1, None, problem)
    assert len(np.unique(leaves)) > 1
    for name in ("cond", "packed"):
        execute = make_executor(name, config, params, policy=POLICIES[method](config))
        rule = Rule(1.0, knob, 0)
        made = predict(
            execute, rule, config, split, batch_size=24, max_seq_length=16, warm_up=False
        )
        np.testing.assert_array_equal(made.layer_mask.sum(axis=1), leaves + 1)
        np.testing.assert_allclose(made.logits, logits[np.arange(24), leaves], atol=1e-4)
        np.testing.assert_allclose(made.cost, exits_cost(config, leaves + 1, split.lengths))
