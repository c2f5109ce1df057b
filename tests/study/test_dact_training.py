"""DACT-BERT trained: what moves, what tau does, and that what is executed is what was trained."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.data import INPUTS
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.inference import make_executor
from dpbert_jax.policies.dact import Dact, is_settled
from dpbert_jax.policies.rule import Rule
from dpbert_jax.problem import REGRESSION
from dpbert_jax.study.dact import check_dact, dact_loss, initial_halting, outcome
from dpbert_jax.study.early_exit import EarlyExitBert, initial_params
from dpbert_jax.study.fit import open_run
from dpbert_jax.training.step import Moment

CONFIG = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=3))


@pytest.fixture(scope="module")
def halting_params(random_params):
    """Parameters whose halting units tell inputs apart."""
    random = np.random.default_rng(0)
    halts = {
        name: {"kernel": random.normal(size=unit["kernel"].shape), "bias": unit["bias"] - 3.0}
        for name, unit in initial_halting(CONFIG).items()
    }
    return {**initial_params(CONFIG, random_params(CONFIG)), **halts}


def labelled(batch):
    rows = len(batch["input_ids"])
    labels = jnp.arange(rows) % 2
    batch = {name: jnp.asarray(each) for name, each in batch.items()}
    return {**batch, "labels": labels, "weights": jnp.ones(rows), "positions": jnp.arange(rows)}


def test_the_loss_moves_everything_and_is_the_answer_s_and_the_shares(random_batch, halting_params):
    batch = labelled(random_batch(4))
    about = (batch, Moment(jax.random.key(0), jnp.float32(0), jnp.float32(4)))
    gradients, sums = jax.jit(jax.grad(partial(dact_loss, 0.1, CONFIG, jnp.float32), has_aux=True))(
        halting_params, *about
    )
    # A unit behind the last layer has no say, but for the shares that it adds up.
    assert all(any(map(np.any, jax.tree.leaves(part))) for part in gradients.values())
    plain, dear = (
        partial(dact_loss, tau, CONFIG, jnp.float32)(halting_params, *about)[0]
        for tau in (0.0, 0.1)
    )
    assert 1 <= float(sums["layers"]) / 4 <= 3
    model = EarlyExitBert(CONFIG.encoder, halts=True)
    keys = about[1].row_keys(batch["positions"])
    said = model.apply({"params": halting_params}, *(batch[name] for name in INPUTS), keys)
    answers, shares = outcome(said)
    own = np.take_along_axis(np.asarray(answers[:, -1]), np.asarray(batch["labels"])[:, None], 1)
    assert float(plain) == pytest.approx(-np.log(own).mean(), rel=1e-4)
    assert float(dear - plain) == pytest.approx(0.1 * float(shares.sum(axis=1).mean()), rel=1e-4)


def test_a_larger_tau_means_fewer_layers(random_batch, random_params):
    batch = labelled(random_batch(8))
    start = {**initial_params(CONFIG, random_params(CONFIG)), **initial_halting(CONFIG)}
    found = []
    for tau in (0.0, 0.1, 3.0):
        loss = partial(dact_loss, tau, CONFIG, jnp.float32)
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
    assert found[0] > found[1] > found[2] and found[2] < 2


def test_what_is_executed_is_what_was_trained(random_split, halting_params):
    split = random_split(24)
    batch = {name: np.zeros((24, 16), np.int32) for name in INPUTS}
    for row in range(24):
        at = slice(split.offsets[row], split.offsets[row + 1])
        length = at.stop - at.start
        batch["input_ids"][row, :length] = split.token_ids[at]
        batch["token_type_ids"][row, :length] = split.type_ids[at]
        batch["attention_mask"][row, :length] = 1
    batch = {name: jnp.asarray(each) for name, each in batch.items()}
    said = EarlyExitBert(CONFIG.encoder, halts=True).apply({"params": halting_params}, **batch)
    answers, shares = outcome(said)
    settled = [is_settled(answers[:, n], shares[:, n], 2 - n) for n in range(3)]
    answers, leaves = np.asarray(answers), np.stack(settled, axis=1).argmax(axis=1)
    assert len(np.unique(leaves)) > 1
    for name in ("cond", "packed"):
        execute = make_executor(name, CONFIG, halting_params, policy=Dact(CONFIG))
        rule = Rule(1.0, 0.0, 0)
        made = predict(
            execute, rule, CONFIG, split, batch_size=24, max_seq_length=16, warm_up=False
        )
        np.testing.assert_array_equal(made.layer_mask.sum(axis=1), leaves + 1)
        found = np.exp(made.logits)
        np.testing.assert_allclose(found, answers[np.arange(24), leaves], atol=1e-4)
        np.testing.assert_array_equal(found.argmax(axis=1), answers[:, -1].argmax(axis=1))
        assert (made.cost >= (leaves + 1) / 3).all()


def test_a_regression_is_refused(tiny_run):
    run = open_run(str(tiny_run))
    encoder = dataclasses.replace(
        run.teacher.config.encoder, num_labels=1, labels=None, problem_type=REGRESSION
    )
    teacher = dataclasses.replace(run.teacher, config=DPBertConfig(encoder))
    with pytest.raises(UserError, match="DACT-BERT decides between classes"):
        check_dact(run._replace(teacher=teacher))
