"""Calibration: the threshold on the gate logits at which a split's mean cost is the budget."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dpbert_jax.config import Calibration, DPBertConfig
from dpbert_jax.data import TokenizedSplit, batches
from dpbert_jax.model import DPBert, Params
from dpbert_jax.model.cost import planner_share

GRID_STEP = 0.025


def budget_grid(min_budget: float) -> np.ndarray:
    """Budgets from `min_budget` to 1.0 that thresholds are found for; [G]."""
    return np.linspace(min_budget, 1.0, max(round((1 - min_budget) / GRID_STEP), 1) + 1)


def calibrate(
    config: DPBertConfig,
    params: Params,
    split: TokenizedSplit,
    *,
    batch_size: int,
    max_seq_length: int,
    dtype: DTypeLike = jnp.float32,
) -> Calibration:
    """Thresholds for a grid of budgets, from the inputs of a split; labels are not looked at.

    The plan at a budget runs the gates whose logit (itself conditioned on that budget) is at least
    the threshold, so mean cost falls as the threshold rises, in steps of one gate of one row.
    """
    assert config.planner is not None
    grid = budget_grid(config.planner.min_budget)
    model = DPBert(config, dtype)

    @jax.jit
    def gate_logits(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        apply: Any = partial(model.apply, {"params": params})
        mask = batch["attention_mask"]
        states = apply(batch["input_ids"], mask, batch["token_type_ids"], method="stem")

        def at_budget(budget: jax.Array) -> jax.Array:
            budgets = jnp.broadcast_to(budget, states.shape[:1])
            return apply(states, mask, budgets, method="plan")

        return jax.lax.map(at_budget, jnp.asarray(grid, jnp.float32))  # [G, B, P]

    logits, shares = [], []
    pad = config.bert.pad_token_id
    for batch in batches(split, batch_size, max_seq_length, pad_token_id=pad):
        real = batch["weights"] > 0
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
        logits.append(np.asarray(gate_logits(params, inputs))[:, real])
        shares += [planner_share(config, batch["input_ids"].shape[1])] * int(real.sum())
    by_budget = np.concatenate(logits, axis=1).reshape(len(grid), -1)  # [G, N * P]
    gate_budgets = (grid - np.mean(shares)) * config.bert.num_hidden_layers - config.stem_layers
    shares_run = gate_budgets / config.num_gates
    thresholds = [
        threshold_for(values, share) for values, share in zip(by_budget, shares_run, strict=True)
    ]
    thresholds[-1] = -config.planner.logit_bound  # budget 1: every gate, on any input
    return Calibration(tuple(map(float, grid)), tuple(thresholds))


def threshold_for(gate_logits: np.ndarray, share: float) -> float:
    """The value that `share` of the logits reach: midway between the last in and the first out."""
    descending = np.sort(gate_logits)[::-1].astype(np.float64)
    count = min(max(round(share * len(descending)), 0), len(descending))
    if count == 0:
        return float(descending[0] + 1)
    if count == len(descending):
        return float(descending[-1] - 1)
    return float((descending[count - 1] + descending[count]) / 2)
