"""The whole model: its parameters, its stages, and gradients through the mixing."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.policies.dpbert import DPBert, init_params

PLANNED = DPBertConfig(TINY, PlannerConfig(stem_layers=1))
DENSE = DPBertConfig(TINY)


@pytest.fixture
def batch(random_batch):
    return jax.tree.map(jnp.asarray, random_batch(3))


@pytest.fixture
def params(random_params):
    return random_params(PLANNED)


def stages(config, params, batch, gates, dtype=jnp.float32):
    """Stem states, planned states and logits under the gates."""
    stage = partial(DPBert(config, dtype).apply, {"params": params})
    first = stage(**batch, method="stem")
    rest = stage(first, batch["attention_mask"], gates, method="encode")
    return first, rest, stage([first, *rest][-1], method="pool")[1]


@pytest.mark.parametrize("config", [PLANNED, DENSE], ids=["planned", "dense"])
def test_parameters_are_a_plain_dict_with_a_subtree_a_layer(config):
    params = jax.eval_shape(lambda: init_params(config, 0))
    assert type(params) is dict
    parts = {"embeddings", "head"} | {f"layer_{i}" for i in range(4)}
    assert set(params) == parts | ({"planner"} if config.planner else set())
    assert all(type(part) is dict for part in params.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    shapes = [jax.tree.map(jnp.shape, params[f"layer_{i}"]) for i in range(4)]
    assert all(shape == shapes[0] for shape in shapes)


def test_initialisation_is_a_function_of_the_seed():
    first, again, other = (flatten_dict(init_params(PLANNED, seed)) for seed in (3, 3, 4))
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[path])
        if path[-1] in ("kernel", "embedding"):
            assert (leaf != other[path]).any(), path
    kernels = [first[f"layer_{i}", "query", "kernel"] for i in range(4)]
    assert all((a != b).any() for a, b in pairwise(kernels))


def test_gradient_of_the_gates_is_that_of_finite_differences(params, batch):
    random = np.random.default_rng(1)
    gates = jnp.asarray(random.uniform(0.1, 0.9, (3, 3)), jnp.float32)
    weights = jnp.asarray(random.standard_normal((3, 2)), jnp.float32)

    @jax.jit
    def loss(gates):
        return (weights * stages(PLANNED, params, batch, gates)[2]).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(gates))
    step, wanted = 1e-2, np.zeros_like(gradient)
    for at in np.ndindex(wanted.shape):
        wanted[at] = (loss(gates.at[at].add(step)) - loss(gates.at[at].add(-step))) / (2 * step)
    assert np.abs(wanted).min() > 1e-3
    np.testing.assert_allclose(gradient, wanted, rtol=1e-2, atol=2e-3)


def test_mixing_is_linear_between_running_and_skipping(params, batch):
    run = jax.jit(partial(stages, PLANNED, params, batch))
    last = jnp.array([[1.0, 1.0, 0.0]] * 3)
    skipped, ran, mixed = (run(last.at[:, 2].set(gate))[1][-1] for gate in (0.0, 1.0, 0.25))
    np.testing.assert_allclose(mixed, 0.25 * ran + 0.75 * skipped, atol=1e-5)
    np.testing.assert_array_equal(skipped, run(last)[1][-2])


def test_call_is_the_sum_of_the_stages(params, batch):
    gates = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    whole = jax.jit(DPBert(PLANNED).apply)({"params": params}, **batch, gates=gates)
    logits = jax.jit(partial(stages, PLANNED))(params, batch, gates)[2]
    np.testing.assert_allclose(whole, logits, atol=1e-6)


def test_dense_model_has_no_gates(params, batch):
    first, rest, logits = jax.jit(partial(stages, DENSE))(params, batch, jnp.ones((3, 0)))
    empty = DPBert(DENSE).apply({}, first, batch["attention_mask"], method="look")
    assert (rest, empty.shape, logits.shape) == ([], (3, 0), (3, 2))


def test_padding_does_not_change_the_logits(params, batch):
    longer = {name: jnp.pad(value, ((0, 0), (0, 4))) for name, value in batch.items()}
    logits = jax.jit(partial(stages, PLANNED, params, gates=jnp.ones((3, 3))))
    np.testing.assert_allclose(logits(batch=longer)[2], logits(batch=batch)[2], atol=1e-5)


def test_bfloat16_compute_keeps_float32_logits_and_stays_near(params, batch):
    gates = jnp.ones((3, 3))
    exact = jax.jit(partial(stages, PLANNED))(params, batch, gates)
    rough = jax.jit(partial(stages, PLANNED, dtype=jnp.bfloat16))(params, batch, gates)
    assert rough[1][-1].dtype == jnp.bfloat16
    assert rough[2].dtype == jnp.float32
    np.testing.assert_allclose(rough[2], exact[2], atol=0.2)
