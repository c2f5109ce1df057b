"""Refitting the planner: on a table of what every plan costs every held-out row.

Gates that were trained together with the backbone depend on the input, but gain little from it: a
single sampled plan tells little about a row, and rows that the backbone trains on look easy under
every plan. The table tells all of it, for rows that nothing was trained on. The planner then learns
by its exact expected loss, with no sampling.
"""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TokenizedSplit
from dpbert_jax.evaluation.plan_table import (
    EXHAUSTIVE_GATES,
    PlanTable,
    all_plans,
    best_of_each_depth,
    drawn_plans,
    make_table,
)
from dpbert_jax.model import Params
from dpbert_jax.model.planner import Planner, bounded
from dpbert_jax.training.objective import row_losses

logger = logging.getLogger(__name__)

RANK = 32  # principal components of the features: a few hundred rows tell no more apart
TEMPERATURE = 0.3  # near the hard rule of inference; at 1, leaking gates hide what a plan is worth
CHAIN_STEPS, CHAIN_LEARNING_RATE, CHAIN_WARMTH = 400, 5e-2, 1.0
STEPS, LEARNING_RATE, WEIGHT_DECAY = 400, 3e-3, 1.0
BUDGETS_A_STEP = 4
CHECK_EVERY = 20  # steps between looks at the rows that early stopping goes by
STOPPING_SHARE = 1 / 3
SCREENING_ROWS = 128


def plan_losses(
    table: PlanTable, split: TokenizedSplit, teacher_logits: np.ndarray, is_regression: bool
) -> Float[np.ndarray, "N K"]:
    """Task and distillation loss of each row under each plan."""
    assert split.labels is not None
    labels, teacher = jnp.asarray(split.labels), jnp.asarray(teacher_logits)
    each = jax.vmap(lambda logits: row_losses(logits, labels, teacher, is_regression), 1, 1)
    return np.asarray(each(jnp.asarray(table.logits)))


def held_out_table(
    config: DPBertConfig,
    params: Params,
    split: TokenizedSplit,
    teacher_logits: np.ndarray,
    *,
    max_seq_length: int,
    seed: int,
) -> tuple[PlanTable, Float[np.ndarray, "N K"]]:
    """The plan table of held-out rows with its losses.

    All plans where the planner decides on at most 8 layers; for deeper models the best of each
    depth among plans drawn by the planner's mean logits, screened on a few rows.
    """
    regression = config.bert.is_regression
    if config.num_gates <= EXHAUSTIVE_GATES:
        plans = all_plans(config)
    else:
        few = split.take(np.arange(min(SCREENING_ROWS, len(split))))
        probe = make_table(
            config,
            params,
            few,
            np.ones((1, config.num_gates), np.float32),
            max_seq_length=max_seq_length,
        )
        preference = judge(config, params["planner"], jnp.asarray(probe.features)).mean(axis=0)
        drawn = drawn_plans(config, np.asarray(preference), seed)
        screened = make_table(config, params, few, drawn, max_seq_length=max_seq_length)
        losses = plan_losses(screened, few, teacher_logits[: len(few)], regression)
        plans = best_of_each_depth(drawn, losses)
    table = make_table(config, params, split, plans, max_seq_length=max_seq_length)
    return table, plan_losses(table, split, teacher_logits, regression)


def judge(
    config: DPBertConfig, planner: Params, features: Float[Array, "N F"]
) -> Float[Array, "N P"]:
    """A planner's gate logits."""
    assert config.planner is not None
    module: Any = Planner(config.planner, config.num_gates)
    return module.apply({"params": planner}, features, method="judge")


def expected_loss(
    gate_logits: Float[Array, "N P"],
    plans: Float[Array, "K P"],
    losses: Float[Array, "N K"],
    share: Float[Array, ""],
    temperature: float | Array = 1.0,
) -> Float[Array, ""]:
    """Mean loss of plans drawn by the gates, at the threshold where they run `share` of them.

    P(plan) is proportional to exp(sum of its gates' (logit - threshold) / temperature): over all
    2^P plans, independent gates; over a bank, those conditioned on falling into it.
    """
    depth = plans.sum(axis=1)

    def weights(threshold: Array) -> Array:
        gain = gate_logits @ plans.T - threshold * depth[None]
        return jax.nn.softmax(gain / temperature)  # [N, K]

    def mean_share(threshold: Array) -> Array:
        return (weights(threshold) @ depth).mean() / plans.shape[1]

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
    return (weights(threshold) * losses).sum(axis=1).mean()


def refit_planner(
    config: DPBertConfig, table: PlanTable, losses: Float[np.ndarray, "N K"], seed: int
) -> Params:
    """A planner's parameters that minimise the expected loss over the trained range of budgets.

    First logits that do not look at the input: a chain of plans, each a layer deeper. From there
    the input gets its say, as far as rows that the fit has not seen are better off for it: a few
    hundred rows, freely fitted, gave plans far worse than the chain.
    """
    assert config.planner is not None
    planner_config = config.planner
    plans, layers = jnp.asarray(table.plans), config.bert.num_hidden_layers
    lowest = config.min_gates / config.num_gates + 0.02
    low, high = planner_config.min_budget, planner_config.max_budget

    def at_budgets(gate_logits: Array, losses: Array, budgets: Array, temperature: Any) -> Array:
        shares = (budgets * layers - config.stem_layers) / config.num_gates
        shares = jnp.clip(shares, lowest, 0.98)
        each = jax.vmap(lambda s: expected_loss(gate_logits, plans, losses, s, temperature))
        return each(shares).mean()

    def draw(key: Any) -> Array:
        return jax.random.uniform(key, (BUDGETS_A_STEP,), minval=low, maxval=high)

    keys = jax.random.split(jax.random.key(seed), 2)
    mean_losses = jnp.asarray(losses.mean(axis=0, keepdims=True))

    def chain_loss(chain: Array, key: Any, progress: Array) -> Array:
        warmth = CHAIN_WARMTH * (TEMPERATURE / CHAIN_WARMTH) ** progress
        return at_budgets(bounded(planner_config, chain)[None], mean_losses, draw(key), warmth)

    chain = _descend(
        chain_loss, jnp.zeros(config.num_gates), optax.adam(CHAIN_LEARNING_RATE), keys[0]
    )

    basis = _principal_components(table.features)
    read = jnp.asarray((table.features - table.features.mean(axis=0)) @ basis)
    order = np.random.default_rng(seed).permutation(len(read))
    stopping = max(int(STOPPING_SHARE * len(order)), 1)
    seen, unseen = order[stopping:], order[:stopping]

    def fit_loss(planner: Params, key: Any, progress: Array) -> Array:
        logits = judge(config, planner, read[seen])
        return at_budgets(logits, jnp.asarray(losses[seen]), draw(key), TEMPERATURE)

    @jax.jit
    def unseen_loss(planner: Params) -> Array:
        logits, budgets = judge(config, planner, read[unseen]), jnp.linspace(low, high, 13)
        return at_budgets(logits, jnp.asarray(losses[unseen]), budgets, TEMPERATURE)

    width = planner_config.hidden_size
    normal = np.random.default_rng([seed, 1]).standard_normal
    planner = {
        "input": {
            "kernel": jnp.asarray(normal((basis.shape[1], width)), jnp.float32),
            "bias": jnp.zeros(width),
        },
        # Not quite zero: where the chain alone stays, something must say which rows go deeper.
        "output": {
            "kernel": jnp.asarray(1e-3 * normal((width, config.num_gates)), jnp.float32),
            "bias": chain,
        },
    }
    rate = optax.cosine_decay_schedule(LEARNING_RATE, STEPS)
    optimizer = optax.adamw(rate, weight_decay=WEIGHT_DECAY)
    best = _descend(fit_loss, planner, optimizer, keys[1], stop_by=unseen_loss)
    before, after = float(unseen_loss(planner)), float(unseen_loss(best))
    logger.info("Planner refitted: loss %.4f, blind to the input %.4f.", after, before)

    kernel = basis @ np.asarray(best["input"]["kernel"])
    bias = np.asarray(best["input"]["bias"]) - table.features.mean(axis=0) @ kernel
    return jax.device_get({**best, "input": {"kernel": kernel, "bias": bias}})


def _principal_components(features: np.ndarray) -> np.ndarray:
    """A basis [F, R] in which the centred features have variance 1 / R in each direction."""
    centred = features - features.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    spread = spread / len(features) ** 0.5
    rank = max(min(RANK, int((spread > 1e-5 * spread[0]).sum())), 1)
    return (directions[:rank].T / spread[:rank] / rank**0.5).astype(np.float32)


def _descend(
    loss: Callable[[Any, Any, Any], Array],
    params: Any,
    optimizer: optax.GradientTransformation,
    key: Any,
    stop_by: Callable[[Any], Array] | None = None,
) -> Any:
    """Minimises loss(params, key, progress); the best by `stop_by`, the first ones included."""
    steps = STEPS if stop_by else CHAIN_STEPS

    @jax.jit
    def advance(params: Any, state: Any, step: Array) -> tuple[Any, Any]:
        gradient = jax.grad(loss)(params, jax.random.fold_in(key, step), step / steps)
        updates, state = optimizer.update(gradient, state, params)
        moved: Any = optax.apply_updates(params, updates)
        return moved, state

    state = optimizer.init(params)
    best = (float(stop_by(params)), params) if stop_by else None
    for step in range(1, steps + 1):
        params, state = advance(params, state, jnp.int32(step))
        if best and stop_by and step % CHECK_EVERY == 0:
            found = float(stop_by(params))
            if found < best[0]:
                best = (found, params)
    return best[1] if best else params
