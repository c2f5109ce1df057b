"""Gates: exact zeros and ones forward, the relaxed gradient backward, hard rules with ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpbert_jax.policies.gates import (
    hard_gates,
    logistic_noise,
    meet_share,
    relaxed_gates,
    straight_through_gates,
)

LOGITS = jnp.array([[-6.0, -1.0, -0.1, 0.0], [0.2, 0.9, 3.0, 6.0]])
NOISE = logistic_noise(jax.random.split(jax.random.key(1), 2), 4)
WEIGHTS = jnp.array([[1.0, -2.0, 0.5, 3.0], [0.1, 1.0, -1.0, 2.0]])
TEMPERATURES = (0.3, 1.0, 2.0)

straight_through = jax.jit(straight_through_gates)
number = st.floats(-50, 50, width=32)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.tuples(*[number] * 4), st.tuples(*[number] * 4), st.floats(2**-7, 8, width=32))
def test_forward_is_exactly_0_or_1_and_the_gradient_finite(logits, noise, temperature):
    def total(logits):
        gates = straight_through(logits, jnp.array([noise]), temperature)
        return gates.sum(), gates

    (_, gates), gradient = jax.value_and_grad(total, has_aux=True)(jnp.array([logits]))
    assert set(np.unique(gates)) <= {0.0, 1.0}
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_is_the_relaxed_gates(temperature):
    """For a loss that is linear in the gates; where it is not, its slope is taken at 0 or 1."""

    def gradients(gate):
        def loss(logits, temperature):
            return (WEIGHTS * gate(logits, NOISE, temperature)).sum()

        return jax.grad(loss, argnums=(0, 1))(LOGITS, temperature)

    hard, soft = gradients(straight_through_gates), gradients(relaxed_gates)
    jax.tree.map(np.testing.assert_array_equal, hard, soft)
    assert (hard[0] != 0).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_relaxed_gradient_is_that_of_finite_differences(temperature):
    logits, noise = np.asarray(LOGITS, np.float64), np.asarray(NOISE, np.float64)

    def relaxed(logits):
        return 1 / (1 + np.exp(-(logits + noise) / temperature))

    step = 1e-5
    wanted = (relaxed(logits + step) - relaxed(logits - step)) / (2 * step)
    gradient = jax.grad(lambda x: relaxed_gates(x, NOISE, temperature).sum())(LOGITS)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(relaxed_gates(LOGITS, NOISE, temperature), relaxed(logits), 1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_probability_of_a_gate_is_the_sigmoid_of_its_logit(temperature):
    rows = 20_000
    noise = logistic_noise(jax.random.split(jax.random.key(0), rows), 4)
    for logits in LOGITS:
        share = straight_through(jnp.tile(logits, (rows, 1)), noise, temperature).mean(axis=0)
        wanted = jax.nn.sigmoid(logits)
        deviation = np.sqrt(wanted * (1 - wanted) / rows)
        np.testing.assert_array_less(np.abs(share - wanted), 4 * deviation)


def test_noise_belongs_to_a_rows_key():
    keys = jax.random.split(jax.random.key(2), 5)
    whole = logistic_noise(keys, 3)
    np.testing.assert_array_equal(logistic_noise(keys[3:4], 3), whole[3:4])
    assert len(np.unique(whole)) == 15


def met(logits, counted, share, shards=1):
    """`meet_share` over rows that are dealt out to shards."""
    function = jax.vmap(
        lambda x, w: meet_share(x, w, jnp.float32(share), "batch"), axis_name="batch"
    )
    split = (shards, len(logits) // shards)
    parts = function(logits.reshape(*split, -1), counted.reshape(split))
    return parts.reshape(logits.shape)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.98])
@pytest.mark.parametrize("shards", [1, 4])
def test_counted_rows_meet_the_share_exactly(share, shards):
    random = np.random.default_rng(0)
    logits = jnp.asarray(3 * random.standard_normal((8, 5)), jnp.float32)
    counted = jnp.array([1.0, 1, 0, 1, 1, 0, 1, 1])
    gates = jax.nn.sigmoid(met(logits, counted, share, shards))
    assert gates[counted > 0].mean() == pytest.approx(share, abs=1e-5)
    moved = met(logits + 1, counted, share, shards)
    np.testing.assert_allclose(moved, met(logits, counted, share), atol=1e-4)


def test_gradient_of_meeting_the_share_is_that_of_finite_differences():
    random = np.random.default_rng(1)
    logits, weights = (jnp.asarray(random.standard_normal((4, 3)), jnp.float32) for _ in range(2))
    counted = jnp.array([1.0, 0.0, 1.0, 1.0])
    values = lambda x, shards: (weights * jax.nn.sigmoid(met(x, counted, 0.4, shards))).sum()  # noqa: E731
    gradient = jax.grad(values)(logits, 2)
    assert abs(gradient.sum()) < 1e-5  # raising all logits alike changes nothing
    for index in np.ndindex(*logits.shape):
        moved = [values(logits.at[index].add(step), 1) for step in (1e-2, -1e-2)]
        assert gradient[index] == pytest.approx(float(moved[0] - moved[1]) / 2e-2, abs=1e-3)


def reference_hard_gates(logits, threshold, top_k, min_gates):
    """The rule in words: best first, the lower layer first among equals, `top_k` at most."""
    gates = np.zeros_like(logits)
    for row, values in enumerate(logits):
        best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:top_k]
        gates[row, [i for i in best if values[i] >= threshold or i in best[:min_gates]]] = 1
    return gates


@pytest.mark.parametrize("threshold", [-np.inf, -1.0, 0.0, 1.0, np.inf])
@pytest.mark.parametrize("top_k", [0, 1, 3, 5])
@pytest.mark.parametrize("min_gates", [0, 2])
def test_hard_gates_by_rank_and_threshold(threshold, top_k, min_gates):
    logits = np.random.default_rng(0).integers(-2, 3, (40, 5)).astype(np.float32)  # many ties
    gates = hard_gates(jnp.asarray(logits), threshold, top_k, min_gates)
    wanted = reference_hard_gates(logits, threshold, top_k, min_gates)
    np.testing.assert_array_equal(gates, wanted)


def test_ties_fall_to_the_lower_layer_and_the_threshold_is_included():
    equal = jnp.zeros((1, 4))
    assert hard_gates(equal, -np.inf, 2).tolist() == [[1, 1, 0, 0]]
    assert hard_gates(equal, 0.0, 4).tolist() == [[1, 1, 1, 1]]


def test_a_threshold_may_differ_between_rows():
    logits = jnp.array([[0.0, 1.0], [0.0, 1.0]])
    gates = hard_gates(logits, jnp.array([[0.5], [-0.5]]), 2)
    assert gates.tolist() == [[0, 1], [1, 1]]
