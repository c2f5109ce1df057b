"""What plans drawn by a planner's gates cost, exactly: from a table of every plan's losses."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dpbert_jax.config import DPBertConfig

BUDGETS = 13  # of the trained range, evenly spaced


def plan_shares(
    gate_logits: Float[Array, "N P"],
    plans: Float[Array, "K P"],
    row_weights: Float[Array, " N"],
    share: Float[Array, ""],
    temperature: float | Array = 1.0,
) -> Float[Array, "N K"]:
    """How likely each row's plans are, at the threshold where gates run `share` of them.

    The share is a mean over rows, weighted as the budget counts them.

    P(plan) is proportional to exp(sum of its gates' (logit - threshold) / temperature): over all
    2^P plans, independent gates; over a bank, those conditioned on falling into it.
    """
    depth = plans.sum(axis=1)
    counted = row_weights / row_weights.mean()

    def weights(threshold: Array) -> Array:
        gain = gate_logits @ plans.T - threshold * depth[None]
        return jax.nn.softmax(gain / temperature)  # [N, K]

    def mean_share(threshold: Array) -> Array:
        return (counted * (weights(threshold) @ depth)).mean() / plans.shape[1]

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        too_many = mean_share(middle) > share
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    bounds = (jnp.float32(-20), jnp.float32(20))
    low, high = jax.lax.fori_loop(0, 40, halve, bounds)
    solved = jax.lax.stop_gradient((low + high) / 2)
    # One Newton step from the solution does not move it, and carries its derivative.
    slope = jax.lax.stop_gradient(jax.grad(mean_share)(solved))
    threshold = solved - (mean_share(solved) - share) / jnp.minimum(slope, -1e-6)
    return weights(threshold)


def expected_loss(
    gate_logits: Float[Array, "N P"],
    plans: Float[Array, "K P"],
    losses: Float[Array, "N K"],
    row_weights: Float[Array, " N"],
    share: Float[Array, ""],
    temperature: float | Array = 1.0,
) -> Float[Array, ""]:
    """Mean loss of plans drawn by the gates (`plan_shares`): the plain mean over rows."""
    shares = plan_shares(gate_logits, plans, row_weights, share, temperature)
    return (shares * losses).sum(axis=1).mean()


@partial(jax.jit, static_argnums=0)
def mean_loss(
    config: DPBertConfig,
    plans: Float[Array, "K P"],
    gate_logits: Float[Array, "N P"],
    losses: Float[Array, "N K"],
    row_weights: Float[Array, " N"],
    temperature: float | Array,
) -> Float[Array, ""]:
    """The expected loss, mean over the trained range of budgets."""
    table = (gate_logits, plans, losses, row_weights)
    at = _shares_of_gates(config)
    return jax.vmap(lambda share: expected_loss(*table, share, temperature))(at).mean()


@partial(jax.jit, static_argnums=0)
def mean_plan_shares(
    config: DPBertConfig,
    plans: Float[Array, "K P"],
    gate_logits: Float[Array, "N P"],
    row_weights: Float[Array, " N"],
    temperature: float | Array,
) -> Float[Array, "N K"]:
    """How often each row has each plan, mean over the trained range of budgets."""
    table = (gate_logits, plans, row_weights)
    at = _shares_of_gates(config)
    return jax.vmap(lambda share: plan_shares(*table, share, temperature))(at).mean(axis=0)


def _shares_of_gates(config: DPBertConfig) -> Float[Array, " budgets"]:
    """What the trained range of budgets pays for, kept off the ends."""
    assert config.planner is not None
    budgets = jnp.linspace(config.planner.min_budget, config.planner.max_budget, BUDGETS)
    lowest = config.min_gates / config.num_gates + 0.02
    paid = budgets * config.encoder.num_hidden_layers - config.stem_layers
    return jnp.clip(paid / config.num_gates, lowest, 0.98)
