"""Calibration: the threshold on the gate logits at which a split's mean cost is the budget."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from dpbert_jax.config import Calibration, DPBertConfig
from dpbert_jax.data import INPUTS, TokenizedSplit, batches, default_buckets
from dpbert_jax.errors import UserError
from dpbert_jax.policies.cost import plan_cost, row_weights
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
    look: Callable[[Mapping[str, np.ndarray]], Any] | None = None,
) -> Calibration:
    """Thresholds for a grid of budgets, from the inputs of a split; labels are not looked at.

    The plan at a budget runs the gates whose logit is at least the threshold, so mean cost falls as
    the threshold rises, in steps of one gate of one row.

    Args:
        inputs: what they are called in the run's config.
        look: a function from a batch to its gate logits [B, P], where a program for it is there
            already. Default: one that runs the stem and the planner alone.
    """
    assert config.planner is not None
    model = DPBert(config, dtype)

    @jax.jit
    def plan(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        apply: Any = partial(model.apply, {"params": params})
        mask = batch["attention_mask"]
        states = apply(batch["input_ids"], mask, batch["token_type_ids"], method="stem")
        return apply(states, mask, method="look")

    if length_buckets is None:
        length_buckets = default_buckets(jax.default_backend(), split.lengths, max_seq_length)
    logits, lengths = [], []
    pad = config.encoder.pad_token_id
    made = batches(
        split, batch_size, max_seq_length, pad_token_id=pad, length_buckets=length_buckets
    )
    for batch in made:
        real = batch["weights"] > 0
        tokens = {k: batch[k] for k in INPUTS}
        found = look(tokens) if look else plan(params, tokens)
        logits.append(np.asarray(found)[real])
        lengths.append(batch["attention_mask"].sum(axis=1)[real])
    if not np.isfinite(np.concatenate(logits)).all():
        raise UserError(
            "The planner computes NaN or infinity for some of these inputs: there is no threshold "
            "among such. Look for them in the model's weights."
        )
    # What a row's largest logits buy, no threshold takes away: it decides on the others.
    descending = -np.sort(-np.concatenate(logits), axis=1)  # [N, P]
    decided = descending[:, config.min_gates :].ravel()
    # In layers, counted as the budget counts rows: what each further gate of each row costs, and
    # what is paid before.
    numbers = np.arange(config.min_gates, config.num_gates + 1)
    plans = np.arange(config.num_gates) < numbers[:, None]  # one of each depth
    tiled = np.tile(plans.astype(np.float32), (len(descending), 1))
    tokens = np.concatenate(lengths)
    each = plan_cost(config, tiled, np.repeat(tokens, len(numbers)))
    every = np.asarray(each, np.float64).reshape(len(descending), -1)
    full = config.encoder.num_hidden_layers * np.asarray(row_weights(config, tokens), np.float64)
    every = every * full[:, None]
    grid = budget_grid(config.planner.min_budget)
    wanted = grid * full.sum() - every[:, 0].sum()
    steps = np.diff(every, axis=1).ravel()
    lowest = -config.planner.logit_bound
    thresholds = [max(threshold_for(decided, total, steps), lowest) for total in wanted]
    thresholds[-1] = lowest  # budget 1: every gate, on any input
    return Calibration(tuple(map(float, grid)), tuple(thresholds), inputs)


def threshold_for(
    gate_logits: Float[np.ndarray, " G"], wanted: float, costs: Float[np.ndarray, " G"]
) -> float:
    """The value at which the gates that reach it cost nearest to what is wanted.

    Midway between the last logit in and the first one out.
    """
    order = np.argsort(-gate_logits, kind="stable")
    descending = gate_logits[order].astype(np.float64)
    paid = np.concatenate([[0.0], np.cumsum(costs[order], dtype=np.float64)])
    count = int(np.abs(paid - wanted).argmin())
    if count == 0:
        return float(descending[0] + 1)
    if count == len(descending):
        return float(descending[-1] - 1)
    return float((descending[count - 1] + descending[count]) / 2)
