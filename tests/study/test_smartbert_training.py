"""SmartBERT's gates trained: what moves, what the penalty does, what is executed."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.inference import make_executor
from dpbert_jax.policies.rule import Rule
from dpbert_jax.policies.smartbert import SmartBert, run_logits
from dpbert_jax.study.smartbert import RUNNING_BIAS, gate_loss, gated_forward, initial_gates
from dpbert_jax.training.step import Moment

CONFIG = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=3))


@pytest.fixture(scope="module")
def gated_params(random_params):
    """Parameters whose gates tell inputs apart."""
    random, gates = np.random.default_rng(1), initial_gates(CONFIG, seed=0)
    for gate in gates.values():
        kernel = random.normal(size=gate["gate"]["kernel"].shape).astype(np.float32)
        gate["gate"] = {"kernel": 20 * kernel, "bias": np.zeros(1, np.float32)}
    return {**random_params(CONFIG), **gates}


def labelled(batch):
    rows = len(batch["input_ids"])
    batch = {name: jnp.asarray(each) for name, each in batch.items()}
    about = {"labels": jnp.arange(rows) % 2, "weights": jnp.ones(rows)}
    return {**batch, **about, "positions": jnp.arange(rows)}


def test_a_gate_does_not_read_padding(random_batch, gated_params):
    batch = labelled(random_batch(4))
    mask = jnp.asarray(batch["attention_mask"]).at[:, 3:].set(0)
    states = jax.random.normal(jax.random.key(0), (*mask.shape, TINY.hidden_size))
    short = run_logits(gated_params["gate_0"], states[:, :3], mask[:, :3], jnp.float32)
    padded = run_logits(gated_params["gate_0"], states, mask, jnp.float32)
    np.testing.assert_allclose(padded, short, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_task_s_and_the_penalty_and_moves_everything(random_batch, random_params):
    batch = labelled(random_batch(4))
    params = {**random_params(CONFIG), **initial_gates(CONFIG, seed=0)}
    about = (batch, Moment(jax.random.key(0), jnp.float32(0), jnp.float32(4)))
    losses = [gate_loss(penalty, CONFIG, jnp.float32, params, *about)[0] for penalty in (0.0, 0.25)]
    keys = about[1].row_keys(batch["positions"])
    answer, logits = gated_forward(CONFIG, jnp.float32, params, batch, keys)
    task = optax.softmax_cross_entropy_with_integer_labels(answer, batch["labels"]).mean()
    assert float(losses[0]) == pytest.approx(float(task), rel=1e-5)
    running = 1 / (1 + np.exp(-np.asarray(logits)))
    assert float(losses[1] - losses[0]) == pytest.approx(0.25 * running.sum(1).mean(), rel=1e-4)
    np.testing.assert_allclose(logits, RUNNING_BIAS, atol=0.2)  # all run to begin with
    gradients = jax.grad(partial(gate_loss, 0.25, CONFIG, jnp.float32), has_aux=True)(
        params, *about
    )[0]
    assert all(any(map(np.any, jax.tree.leaves(part))) for part in gradients.values())


def test_what_is_executed_is_what_was_trained_and_a_threshold_is_a_dial(random_batch, gated_params):
    batch = random_batch(24)
    answer, logits = gated_forward(CONFIG, jnp.float32, gated_params, labelled(batch), None)
    plans = np.asarray(logits) > 0
    assert len(np.unique(plans, axis=0)) > 2
    lengths = batch["attention_mask"].sum(axis=1)
    for name in ("cond", "packed"):
        execute = make_executor(name, CONFIG, gated_params, policy=SmartBert(CONFIG))
        made = execute(batch, Rule(1.0, 0.0, 0))
        np.testing.assert_array_equal(made.layer_mask, plans)
        np.testing.assert_allclose(made.logits, answer, atol=1e-4)
        np.testing.assert_allclose(made.gate_logits, logits, atol=1e-3)
        every, none = (execute(batch, Rule(1.0, t, 0)).layer_mask for t in (-1e9, 1e9))
        assert np.all(every) and not np.any(none)
    cost = SmartBert(CONFIG).cost(plans.astype(int), lengths)
    assert (cost > plans.mean(axis=1)).all()


def test_a_larger_penalty_means_fewer_layers(random_batch, random_params):
    batch = labelled(random_batch(8))
    start = {**random_params(CONFIG), **initial_gates(CONFIG, seed=0)}
    found = []
    for penalty in (0.0, 3.0):
        loss = partial(gate_loss, penalty, CONFIG, jnp.float32)
        optimizer = optax.adam(3e-3)

        @jax.jit
        def step(params, state, key, loss=loss, optimizer=optimizer):
            about = (batch, Moment(key, jnp.float32(0), jnp.float32(8)))
            gradients, sums = jax.grad(loss, has_aux=True)(params, *about)
            updates, state = optimizer.update(gradients, state)
            return optax.apply_updates(params, updates), state, sums["layers"]

        params, state = start, optimizer.init(start)
        for number in range(40):
            params, state, layers = step(params, state, jax.random.key(number))
        found.append(float(layers) / 8)
    assert found[0] > found[1] + 0.5
