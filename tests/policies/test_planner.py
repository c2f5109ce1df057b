"""The planner: every parameter learns, it reads one row, and costs next to nothing."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dpbert_jax.config import BERT_BASE, TINY, DPBertConfig, EncoderConfig, PlannerConfig
from dpbert_jax.policies.cost import planner_share
from dpbert_jax.policies.dpbert import DPBert, init_params
from dpbert_jax.policies.gates import logistic_noise, straight_through_gates
from dpbert_jax.policies.planner import gate_logits

CONFIG = DPBertConfig(
    replace(TINY, num_hidden_layers=3), PlannerConfig(stem_layers=1, hidden_size=8)
)
MINILM = EncoderConfig(
    hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)
STATES = jax.random.normal(jax.random.key(0), (4, 6, 16))
MASK = jnp.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])

apply = jax.jit(partial(gate_logits, CONFIG))


@pytest.fixture(scope="module")
def planner(random_params):
    return partial(apply, random_params(CONFIG)["planner"])


def task_loss(logits, gates):
    return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.array([0, 1, 1, 0])].mean()


@pytest.fixture(scope="module")
def initial():
    """The very parameters that training starts from, not larger ones."""
    return init_params(CONFIG, 0)


def test_every_planner_parameter_learns(initial, random_batch):
    model, batch = DPBert(CONFIG), random_batch(4)

    def loss(planner, params, input_ids, attention_mask, token_type_ids):
        stage = partial(model.apply, {"params": {**params, "planner": planner}})
        states = stage(input_ids, attention_mask, token_type_ids, method="stem")
        gate_logits = stage(states, attention_mask, method="look")
        noise = logistic_noise(jax.random.split(jax.random.key(5), 4), CONFIG.num_gates)
        gates = straight_through_gates(gate_logits, noise, 1.0)
        states = stage(states, attention_mask, gates, method="encode")[-1]
        logits = stage(states, method="pool")[1]
        return task_loss(logits, gates)

    gradients = jax.jit(jax.grad(loss))(initial["planner"], initial, **batch)
    assert len(flatten_dict(gradients)) == 4
    for path, leaf in flatten_dict(gradients).items():
        assert np.isfinite(leaf).all(), path
        assert (leaf != 0).all(), path


def test_logits_are_bounded(random_params):
    params = jax.tree.map(lambda leaf: 1e3 * leaf, random_params(CONFIG)["planner"])
    logits = apply(params, 1e3 * STATES, MASK)
    assert np.abs(logits).max() <= CONFIG.planner.logit_bound
    assert np.abs(logits).max() > 0.9 * CONFIG.planner.logit_bound


def test_a_row_is_planned_by_itself(planner):
    whole = planner(STATES, MASK)
    for row in range(4):
        one = slice(row, row + 1)
        alone = planner(STATES[one], MASK[one])
        np.testing.assert_allclose(alone, whole[one], atol=1e-5)
    others = STATES.at[1:].multiply(-3.0)
    np.testing.assert_allclose(planner(others, MASK)[0], whole[0], atol=1e-5)


def test_padding_is_not_read(planner):
    garbage = jnp.full((4, 5, 16), 1e4)
    states = jnp.concatenate([jnp.where(MASK[..., None] > 0, STATES, -1e4), garbage], axis=1)
    mask = jnp.concatenate([MASK, jnp.zeros((4, 5), jnp.int32)], axis=1)
    wanted = planner(STATES, MASK)
    np.testing.assert_allclose(planner(states, mask), wanted, atol=1e-5)


def test_mean_first_token_and_length_are_read(planner):
    wanted = planner(STATES, MASK)

    def change(states=STATES, mask=MASK):
        return np.abs(planner(states, mask) - wanted)[0].max()

    assert change(states=STATES.at[0, 0].multiply(-1.0)) > 1e-2
    assert change(states=STATES.at[0, 3].multiply(-1.0)) > 1e-3
    assert change(mask=MASK.at[0, 4:].set(0)) > 1e-3


def test_bfloat16_states_give_float32_logits(planner):
    logits = planner(STATES.astype(jnp.bfloat16), MASK)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, planner(STATES, MASK), atol=0.1)


@pytest.mark.parametrize("bert", [MINILM, BERT_BASE])
@pytest.mark.parametrize("length", [16, 64, 128, 512])
def test_planner_costs_under_a_thousandth_of_the_encoder(bert, length):
    assert 0 < planner_share(DPBertConfig(bert, PlannerConfig()), length) < 0.001
