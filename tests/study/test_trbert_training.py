"""TR-BERT trained: its losses by hand, its expert, and that tokens get dearer with alpha."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.inference import Rule, make_executor, resolve_rule
from dpbert_jax.policies.tokens import trbert
from dpbert_jax.study.token_path import (
    answer_with,
    every_token,
    first_states,
    importance,
    most_important,
)
from dpbert_jax.study.trbert import (
    BOTH,
    SELECTORS,
    initial_selectors,
    selection_losses,
    trbert_loss,
)
from dpbert_jax.training.objective import row_losses, threshold_grid
from dpbert_jax.training.step import Moment

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENCODER = dataclasses.replace(TINY, num_hidden_layers=4, **NO_DROPOUT)
PLAIN = DPBertConfig(ENCODER)
GRID = Calibration((0.4, 1.0), (1.0, -1.0), "none")
PLANNED = DPBertConfig(ENCODER, PlannerConfig(), GRID)


def labelled(batch):
    rows = len(batch["input_ids"])
    batch = {name: jnp.asarray(each) for name, each in batch.items()}
    teacher = jax.random.normal(jax.random.key(9), (rows, 2))
    about = {"labels": jnp.arange(rows) % 2, "weights": jnp.ones(rows), "teacher_logits": teacher}
    return {**batch, **about, "positions": jnp.arange(rows)}


def test_the_likelihood_of_a_draw_by_hand():
    said = jnp.log(jnp.array([[1.0, 3.0, 1 / 3, 1.0]]))  # p is .5, .75, .25, .5
    before, after = jnp.array([[1, 1, 1, 0]]), jnp.array([[1, 1, 0, 0]])
    wanted = -np.log([0.5, 0.75, 0.75]).mean()
    assert float(selection_losses(said, before, after)[0]) == pytest.approx(wanted, rel=1e-5)


def test_the_expert_keeps_the_tokens_of_largest_gradients(random_batch, random_params):
    batch = labelled(random_batch(5))
    mask, params = batch["attention_mask"], {**random_params(PLAIN), **initial_selectors(PLAIN, 0)}
    states = first_states(PLAIN, jnp.float32, params, batch, None)
    found = importance(PLAIN, jnp.float32, params, states, mask, batch["labels"])
    assert (np.asarray(found)[np.asarray(mask) > 0] > 0).all()

    def loss(moved):
        logits = answer_with(PLAIN, jnp.float32, params, moved, mask, every_token)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).sum()

    # By finite differences along the gradient of one token.
    gradient = jax.grad(loss)(states)[2, 1]
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    slope = (loss(states.at[2, 1].add(step)) - loss(states.at[2, 1].add(-step))) / 2e-2
    assert float(found[2, 1]) == pytest.approx(float(slope), rel=0.05)
    scores = jnp.array([[0.1, 5.0, 3.0, 9.0, -1.0]])
    left = jnp.array([[1, 1, 1, 1, 0]])
    kept = most_important(scores, jnp.array([2.4]), left)
    assert kept.tolist() == [[False, True, False, True, False]]


@pytest.mark.parametrize("config", [PLAIN, PLANNED], ids=["alone", "planned"])
@pytest.mark.parametrize("phase", [SELECTORS, BOTH])
def test_selectors_learn_from_rewards_and_the_backbone_from_the_teacher(
    config, phase, random_batch, random_params
):
    batch = labelled(random_batch(6))
    params = {**random_params(config), **initial_selectors(config, 0)}
    about = (
        batch,
        Moment(jax.random.key(0), jnp.float32(0.0), jnp.float32(6), threshold_grid(config)),
    )
    loss = partial(trbert_loss, 0.5, phase, config, jnp.float32)
    gradients, sums = jax.jit(jax.grad(loss, has_aux=True))(params, *about)
    moved = {name for name, part in gradients.items() if any(map(np.any, jax.tree.leaves(part)))}
    assert {"selector_0", "selector_1"} <= moved
    assert ({"layer_1", "layer_3", "head"} <= moved) == (phase == BOTH)
    assert "planner" not in moved and ("embeddings" in moved) == (phase == BOTH and config is PLAIN)
    assert 1 <= float(sums["layers"]) / 6 <= 4


def test_under_a_planner_tokens_are_drawn_and_the_backbone_learns_on_its_plans(
    random_batch, random_params
):
    batch = {**labelled(random_batch(3)), "positions": jnp.arange(1, 4)}  # none of the full path
    params = {**random_params(PLANNED), **initial_selectors(PLANNED, 0)}
    params["planner"]["output"]["bias"] = jnp.array([0.0, 5.0, 0.0])  # layer 2 comes first
    grid = np.array([0.4, 1.0], np.float32), np.full(2, 4.0, np.float32)  # for one layer of three
    moment = Moment(jax.random.key(0), jnp.float32(1), jnp.float32(3), grid)
    loss = partial(trbert_loss, 0.5, BOTH, PLANNED, jnp.float32)
    gradients, sums = jax.grad(loss, has_aux=True)(params, batch, moment)
    moved = {name for name, part in gradients.items() if any(map(np.any, jax.tree.leaves(part)))}
    assert {f"layer_{i}" for i in range(4)} & moved == {"layer_2"}
    assert float(sums["layers"]) / 3 <= 2


def test_no_copy_of_the_expert_is_pushed_away_from(random_batch, random_params):
    """Selectors that are next to certain, and mostly not of the expert's tokens.

    What they draw themselves tells them nothing then, and a bad copy would without a bound.
    """
    batch = labelled(random_batch(6))
    params = {**random_params(PLAIN), **initial_selectors(PLAIN, 0)}
    for name in ("selector_0", "selector_1"):
        narrow = params[name]["narrow"]
        params[name]["narrow"] = {"kernel": 1e5 * narrow["kernel"], "bias": 0 * narrow["bias"]}
    moment = Moment(jax.random.key(0), jnp.float32(0), jnp.float32(6))
    assert float(trbert_loss(0.0, SELECTORS, PLAIN, jnp.float32, params, batch, moment)[0]) > 0.1


def test_rows_of_all_layers_keep_all_tokens_under_a_planner(random_batch, random_params):
    """Selectors are certain that no token stays, so that nothing but the encoder's loss is left."""
    inputs = random_batch(8)
    batch, params = labelled(inputs), {**random_params(PLANNED), **initial_selectors(PLANNED, 0)}
    for name in ("selector_0", "selector_1"):
        narrow = params[name]["narrow"]
        params[name]["narrow"] = {"kernel": 0 * narrow["kernel"], "bias": narrow["bias"] - 1000}

    def learns(row, phase):
        alone = {**batch, "weights": (jnp.arange(8) == row).astype(jnp.float32)}
        moment = Moment(jax.random.key(0), jnp.float32(1), jnp.float32(1), threshold_grid(PLANNED))
        return float(trbert_loss(0.5, phase, PLANNED, jnp.float32, params, alone, moment)[0])

    everything = make_executor("masked", PLANNED, params)(inputs, resolve_rule(PLANNED, 1.0)).logits
    about = (jnp.asarray(everything), batch["labels"], batch["teacher_logits"])
    whole = np.asarray(row_losses(*about, ENCODER.problem_type))
    for row in (0, 4):  # every fourth
        assert learns(row, BOTH) == pytest.approx(float(whole[row]), rel=1e-4)
        assert learns(row, SELECTORS) == 0
    assert learns(1, BOTH) != pytest.approx(float(whole[1]), rel=1e-2)


def test_a_larger_alpha_means_fewer_tokens_and_they_are_dropped(random_batch, random_params):
    batch = random_batch(8)
    rows = labelled(batch)
    start = {**random_params(PLAIN), **initial_selectors(PLAIN, 0)}
    kept = []
    for alpha in (0.0, 20.0):
        loss = partial(trbert_loss, alpha, BOTH, PLAIN, jnp.float32)
        optimizer = optax.adam(3e-2)

        @jax.jit
        def step(params, state, key, loss=loss, optimizer=optimizer):
            gradients = jax.grad(loss, has_aux=True)(
                params, rows, Moment(key, jnp.float32(1), jnp.float32(8))
            )[0]
            only = {
                name: part if name.startswith("selector_") else jax.tree.map(jnp.zeros_like, part)
                for name, part in gradients.items()
            }
            updates, state = optimizer.update(only, state)
            return optax.apply_updates(params, updates), state

        params, state = start, optimizer.init(start)
        for number in range(60):
            params, state = step(params, state, jax.random.key(number))
        execute = make_executor("packed", PLAIN, params, policy=trbert(PLAIN))
        tokens = np.asarray(execute(batch, Rule(1.0, 0.0, 0)).tokens)
        kept.append(tokens[:, -1])
    assert (kept[1] == 1).all(), "the first alone is left"
    assert (kept[0] > 1).any()
