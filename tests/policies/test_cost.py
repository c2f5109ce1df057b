"""What plans cost, against a sum by hand and against XLA's own count."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import BERT_BASE, TINY, DPBertConfig, EncoderConfig, PlannerConfig
from dpbert_jax.encoder.flops import layer_flops
from dpbert_jax.encoder.modules import Layer
from dpbert_jax.policies.cost import plan_cost, planner_share
from dpbert_jax.policies.dpbert import init_params
from dpbert_jax.policies.planner import gate_logits, planner_flops


def planned(stem):
    return DPBertConfig(TINY, PlannerConfig(stem_layers=stem))


def xla_flops(module, *inputs):
    """XLA's count for a module, before optimisation: its calls into libraries count nothing."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.jit(module.apply).lower(shapes, *inputs).cost_analysis()["flops"]


@pytest.mark.parametrize(("length", "hidden"), [(128, 256), (32, 384), (256, 128)])
def test_layer_flops_are_what_xla_counts(length, hidden):
    """XLA adds softmax, GELU, norms and biases, which are no matrix products: a few percent."""
    config = EncoderConfig(
        hidden_size=hidden, num_attention_heads=2, intermediate_size=4 * hidden, hidden_act="relu"
    )
    states = jax.ShapeDtypeStruct((1, length, hidden), jnp.float32)
    bias = jax.ShapeDtypeStruct((1, 1, 1, length), jnp.float32)
    counted = xla_flops(Layer(config), states, bias)
    assert 1.0 < counted / layer_flops(config, length) < 1.05


def test_planner_flops_are_what_xla_counts():
    config, length = DPBertConfig(BERT_BASE, PlannerConfig()), 64
    states = jax.ShapeDtypeStruct((1, length, 768), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = init_params(config, 0)["planner"]
    program = jax.jit(partial(gate_logits, config)).lower(params, states, mask)
    counted = program.cost_analysis()["flops"]
    assert 0.9 < counted / planner_flops(config, length) < 1.1


def test_bert_base_at_128_tokens_by_hand():
    projections = 4 * 768 * 768 + 2 * 768 * 3072
    assert layer_flops(BERT_BASE, 128) == 2 * 128 * projections + 4 * 128 * 128 * 768


@pytest.mark.parametrize("stem", [0, 1, 3])
def test_full_plan_costs_one_and_the_planner(stem):
    config = planned(stem)
    gates = jnp.ones((2, config.num_gates))
    share = planner_share(config, 16)
    np.testing.assert_allclose(plan_cost(config, gates, 16), 1 + share, rtol=1e-6)
    assert share > 0


def test_dense_model_costs_one():
    config = DPBertConfig(TINY)
    assert planner_share(config, 16) == planner_flops(config, 16) == 0
    np.testing.assert_array_equal(plan_cost(config, jnp.ones((2, 0)), 16), [1.0, 1.0])


@pytest.mark.parametrize("stem", [0, 1])
def test_cost_is_linear_in_the_layers_that_run(stem):
    config = planned(stem)
    plans = np.array(list(itertools.product([0, 1], repeat=config.num_gates)), np.float32)
    wanted = (stem + plans.sum(axis=1)) / 4 + planner_share(config, 16)
    np.testing.assert_allclose(plan_cost(config, jnp.asarray(plans), 16), wanted, rtol=1e-6)
    np.testing.assert_allclose(plan_cost(config, plans, 16), wanted, rtol=1e-6)  # numpy too


def test_gradient_flows_to_every_gate():
    config = planned(1)
    gradient = jax.grad(lambda gates: plan_cost(config, gates, 16).sum())(jnp.full((2, 3), 0.3))
    np.testing.assert_allclose(gradient, 0.25)
