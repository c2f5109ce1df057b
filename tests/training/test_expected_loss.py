"""The expected loss of drawn plans: by enumeration, and its gradient by differences."""

import dataclasses
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.training.expected_loss import expected_loss
from dpbert_jax.training.plan_bank import all_plans

CONFIG = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=4), PlannerConfig())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_expected_loss_is_that_of_independent_gates_at_the_share(share):
    random = np.random.default_rng(0)
    logits = random.standard_normal((6, 3)).astype(np.float32)
    plans, losses = all_plans(CONFIG), random.random((6, 8)).astype(np.float32)
    counted = np.array([1, 2, 0.5, 1, 3, 1], np.float32)
    found = expected_loss(*map(jnp.asarray, (logits, plans, losses, counted)), jnp.float32(share))
    thresholds = np.linspace(-8, 8, 200_001)
    mean = [
        np.average((1 / (1 + np.exp(t - logits))).mean(axis=1), weights=counted)
        for t in thresholds[::100]
    ]
    threshold = np.interp(-share, -np.array(mean), thresholds[::100])
    gates = 1 / (1 + np.exp(threshold - logits))
    wanted = 0.0
    for plan in product((0, 1), repeat=3):
        number = (plans == plan).all(axis=1).argmax()
        wanted += np.where(plan, gates, 1 - gates).prod(axis=1) @ losses[:, number] / 6
    assert float(found) == pytest.approx(wanted, abs=1e-4)


def test_its_gradient_is_that_of_finite_differences():
    random = np.random.default_rng(1)
    logits = jnp.asarray(random.standard_normal((4, 3)), jnp.float32)
    plans = jnp.asarray(all_plans(CONFIG)[1:])  # a bank
    losses = jnp.asarray(random.random((4, 7)), jnp.float32)
    counted = jnp.array([1.0, 2.0, 0.5, 1.0])
    value = jax.jit(lambda x: expected_loss(x, plans, losses, counted, jnp.float32(0.5)))
    gradient = jax.grad(value)(logits)
    for index in np.ndindex(4, 3):
        moved = [float(value(logits.at[index].add(step))) for step in (2e-2, -2e-2)]
        assert float(gradient[index]) == pytest.approx((moved[0] - moved[1]) / 4e-2, abs=1e-3)
