"""Calibration: the threshold on the gate logits at which a split's mean cost is the budget."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dpbert_jax.config import Calibration, DPBertConfig
from dpbert_jax.data import INPUTS, TokenizedSplit, batches
from dpbert_jax.errors import UserError
from dpbert_jax.policies.cost import planner_share
from dpbert_jax.policies.dpbert import DPBert, Params

GRID_STEP = 0.025


def budget_grid(min_budget: float) -> np.ndarray:
    """Budgets from `min_budget` to 1.0 that thresholds are found for; [G]."""
    return np.linspace(min_budget, 1.0, max(round((1 - min_budget) / GRID_STEP), 1) + 1)


def calibrate(
    config: DPBertConfig,
    params: Params,
    split: TokenizedSplit,
    *,
    inputs: str,
    batch_size: int,
    max_seq_length: int,
    length_buckets: Sequence[int] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Calibration:
    """Thresholds for a grid of budgets, from the inputs of a split; labels are not looked at.

    `inputs` names them in the run's config.

    The plan at a budget runs the gates whose logit is at least the threshold, so mean cost falls as
    the threshold rises, in steps of one gate of one row.
    """
    assert config.planner is not None
    model = DPBert(config, dtype)

    @jax.jit
    def plan(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        apply: Any = partial(model.apply, {"params": params})
        mask = batch["attention_mask"]
        states = apply(batch["input_ids"], mask, batch["token_type_ids"], method="stem")
        return apply(states, mask, method="look")

    logits = []
    pad = config.encoder.pad_token_id
    made = batches(
        split, batch_size, max_seq_length, pad_token_id=pad, length_buckets=length_buckets
    )
    for batch in made:
        real = batch["weights"] > 0
        tokens = {k: batch[k] for k in INPUTS}
        logits.append(np.asarray(plan(params, tokens))[real])
    if not np.isfinite(np.concatenate(logits)).all():
        raise UserError(
            "The planner computes NaN or infinity for some of these inputs: there is no threshold "
            "among such. Look for them in the model's weights."
        )
    # What a row's largest logits buy, no threshold takes away: it decides on the others.
    fixed = config.stem_layers + config.min_gates
    descending = -np.sort(-np.concatenate(logits), axis=1)  # [N, P]
    decided = descending[:, config.min_gates :].ravel()
    grid = budget_grid(config.planner.min_budget)
    planner = np.mean(planner_share(config, split.lengths))
    gates = (grid - planner) * config.encoder.num_hidden_layers - fixed
    lowest = -config.planner.logit_bound
    shares_run = gates * len(descending) / len(decided)
    thresholds = [max(threshold_for(decided, share), lowest) for share in shares_run]
    thresholds[-1] = lowest  # budget 1: every gate, on any input
    return Calibration(tuple(map(float, grid)), tuple(thresholds), inputs)


def threshold_for(gate_logits: np.ndarray, share: float) -> float:
    """The value that `share` of the logits reach: midway between the last in and the first out."""
    descending = np.sort(gate_logits)[::-1].astype(np.float64)
    count = min(max(round(share * len(descending)), 0), len(descending))
    if count == 0:
        return float(descending[0] + 1)
    if count == len(descending):
        return float(descending[-1] - 1)
    return float((descending[count - 1] + descending[count]) / 2)
