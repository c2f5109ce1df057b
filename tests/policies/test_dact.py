"""DACT-BERT's halting: the sums by hand, and a row that leaves has the full run's class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpbert_jax.policies.dact import advance, is_settled


def run_all(logits, halting):
    """a_n and p_n of every layer, [L, B, C] and [L, B]."""
    answer, share = jnp.zeros(logits.shape[1:]), jnp.ones(logits.shape[1])
    answers, shares = [], []
    for said, unit in zip(jnp.asarray(logits), jnp.asarray(halting), strict=True):
        answer, share = advance(said, unit, answer, share)
        answers.append(answer)
        shares.append(share)
    return np.stack(answers), np.stack(shares)


def test_two_layers_by_hand():
    logits = np.log(np.array([[[0.9, 0.1]], [[0.2, 0.8]]], np.float32))
    halting = np.log(np.array([[0.25 / 0.75], [1.0]], np.float32))  # h is 0.25, then 0.5
    answers, shares = run_all(logits, halting)
    np.testing.assert_allclose(shares[:, 0], [0.25, 0.125], rtol=1e-5)
    np.testing.assert_allclose(answers[0, 0], [0.9, 0.1], rtol=1e-5)
    np.testing.assert_allclose(answers[1, 0], [0.25 * 0.2 + 0.75 * 0.9, 0.275], rtol=1e-5)
    # With one layer left: 0.9 * 0.75 >= 0.1 + 0.25.
    assert bool(is_settled(jnp.array([[0.9, 0.1]]), jnp.array([0.25]), 1)[0])
    assert not bool(is_settled(jnp.array([[0.9, 0.1]]), jnp.array([0.25]), 2)[0])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    layers=st.integers(1, 12),
    classes=st.integers(2, 5),
    bias=st.floats(-6, 3),
    sharpness=st.floats(0, 6),
)
def test_no_later_layer_changes_the_class_of_a_row_that_left(
    seed, layers, classes, bias, sharpness
):
    random = np.random.default_rng(seed)
    logits = sharpness * random.normal(size=(layers, 64, classes)).astype(np.float32)
    halting = (bias + random.normal(size=(layers, 64))).astype(np.float32)
    answers, shares = run_all(logits, halting)
    np.testing.assert_allclose(answers.sum(axis=2), 1.0, atol=1e-5)
    assert (np.diff(shares, axis=0) <= 0).all()
    wanted = answers[-1].argmax(axis=1)
    margin = np.diff(np.sort(answers[-1], axis=1)[:, -2:], axis=1)[:, 0]
    clear = margin > 1e-5  # a tie has no class
    for n in range(layers):
        about = (jnp.asarray(answers[n]), jnp.asarray(shares[n]))
        left = np.asarray(is_settled(*about, layers - 1 - n))
        assert (answers[n].argmax(axis=1) == wanted)[left & clear].all()
    assert left.all()  # behind the last layer


def test_the_bound_is_one_that_the_worst_layers_reach():
    """Later layers that are all sure of the second class, and never halt."""
    share, left = 0.1, 3
    for best, turns in ((0.78, False), (0.55, True)):
        answer = jnp.array([[best, 1 - best]])
        p = jnp.array([share])
        assert bool(is_settled(answer, p, left)[0]) != turns
        for _ in range(left):
            answer, p = advance(jnp.array([[-99.0, 99.0]]), jnp.array([99.0]), answer, p)
        assert bool(answer[0, 1] > answer[0, 0]) == turns


@pytest.mark.parametrize("halting", [-9.0, 9.0])
def test_halting_units_say_how_many_layers_have_a_say(halting):
    logits = jax.random.normal(jax.random.key(0), (4, 8, 2))
    answers, _ = run_all(logits, np.full((4, 8), halting, np.float32))
    first, last = jax.nn.softmax(logits[0]), jax.nn.softmax(logits[-1])
    np.testing.assert_allclose(answers[-1], first if halting < 0 else last, atol=1e-3)
