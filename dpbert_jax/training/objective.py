"""The losses of the training stages, as sums over rows so that shards simply add up.

Stages differ by their forward pass. `dense_forward`: the plain encoder. `joint_forward`: planner
and backbone together, gates sampled at a budget. `final_forward`: the planner is frozen and the
encoder learns that planner's hard plans. None of this is published for DPBERT; it is this project's
design.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.operations import Params, fold_rows
from dpbert_jax.policies.adapted import adapter_slots
from dpbert_jax.policies.cost import planner_share, row_weights
from dpbert_jax.policies.dpbert import DPBert
from dpbert_jax.policies.gates import (
    hard_gates,
    logistic_noise,
    meet_share,
    straight_through_gates,
)
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, ProblemType
from dpbert_jax.training.step import AXIS, Moment

DISTILLATION_TEMPERATURE = 2.0
DISTILLATION_SHARE = 0.5
GATE_TEMPERATURE = (1.0, 0.5)  # at the start and the end of the joint stage
SHARE_RANGE = (0.02, 0.98)  # gates of either kind are sampled at every budget
BUDGET_RAMP = 0.2  # the share of the joint stage over which the lowest budget comes down from 1
FULL_PATH_EVERY = 4  # one row in so many runs all layers: the full path stays good


class Forward(NamedTuple):
    """What a stage's forward pass gives to the loss."""

    logits: Float[Array, "B C"]
    gates: Float[Array, "B P"]


# Budgets, and the threshold of each.
Thresholds = tuple[Float[Array | np.ndarray, " G"], Float[Array | np.ndarray, " G"]]
# (model, params, batch, each row's key [B], moment); `batch` as `stage_loss` has it
ForwardPass = Callable[[DPBert, Params, dict[str, Array], Array, Moment], Forward]


def row_losses(
    logits: Float[Array, "B C"],
    labels: Array,
    teacher_logits: Float[Array, "B C"] | None,
    problem_type: ProblemType,
    labelled: Float[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """Task loss of each row, mixed with distillation where there is a teacher.

    Classification: cross-entropy, and KL from the teacher at temperature 2 (Hinton et al.,
    1503.02531); of several labels the mean over them, each a choice of two. Regression: squared
    errors to label and to teacher.

    Args:
        labels: [B] class ids or scores, or [B, C] of 0 and 1.
        labelled: 0 for a row that learns from the teacher alone.
    """
    warmth = DISTILLATION_TEMPERATURE
    if problem_type == REGRESSION:
        task = jnp.square(logits[:, 0] - labels)
        if teacher_logits is None:
            return task
        distilled = jnp.square(logits - teacher_logits)[:, 0]
    elif problem_type == MULTI_LABEL:
        task = optax.sigmoid_binary_cross_entropy(logits, labels).mean(axis=-1)
        if teacher_logits is None:
            return task
        distilled = warmth**2 * label_divergence(logits / warmth, teacher_logits / warmth)
    else:
        task = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        if teacher_logits is None:
            return task
        distilled = warmth**2 * optax.kl_divergence(
            jax.nn.log_softmax(logits / warmth), jax.nn.softmax(teacher_logits / warmth)
        )
    share = 1 - DISTILLATION_SHARE if labelled is None else (1 - DISTILLATION_SHARE) * labelled
    return share * task + (1 - share) * distilled


def label_divergence(
    logits: Float[Array, "*N C"], teacher_logits: Float[Array, "*N C"]
) -> Float[Array, "*N"]:
    """KL from the teacher's to the student's choice for each label, mean over the labels."""
    teacher = jax.nn.sigmoid(teacher_logits)
    yes = jax.nn.log_sigmoid(teacher_logits) - jax.nn.log_sigmoid(logits)
    no = jax.nn.log_sigmoid(-teacher_logits) - jax.nn.log_sigmoid(-logits)
    return (teacher * yes + (1 - teacher) * no).mean(axis=-1)


def share_of_gates(
    config: DPBertConfig, budget: float | Array, sequence_length: int
) -> Float[Array, ""]:
    """The share of planned layers that a budget pays for, kept off 0 and 1."""
    layers = config.encoder.num_hidden_layers
    paid = (budget - planner_share(config, sequence_length)) * layers - config.stem_layers
    return jnp.clip(paid / config.num_gates, *SHARE_RANGE)


def planned_rows(positions: Int[Array, " B"]) -> Float[Array, " B"]:
    """1 where a row follows the planner, 0 where it runs all layers.

    Rows come shuffled, so every fourth position is a random quarter.
    """
    return (positions % FULL_PATH_EVERY != 0).astype(jnp.float32)


def dense_forward(
    model: DPBert,
    params: Params,
    batch: dict[str, Array],
    row_keys: Key[Array, " B"],
    moment: Moment,
) -> Forward:
    """All layers, no planner."""
    keys = fold_rows(row_keys, 0)
    apply: Any = partial(model.apply, {"params": params})
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    states = apply(*inputs, keys, method="stem")
    _, logits = apply(states, keys, method="pool")
    return Forward(logits, jnp.zeros((logits.shape[0], 0)))


def joint_forward(
    model: DPBert,
    params: Params,
    batch: dict[str, Array],
    row_keys: Key[Array, " B"],
    moment: Moment,
) -> Forward:
    """Gates sampled straight-through at one budget a step, a quarter of the rows on the full path.

    The gates' probabilities meet the budget exactly on average over the batch (`meet_share`).
    """
    keys = fold_rows(row_keys, 0)
    apply: Any = partial(model.apply, {"params": params})
    mask = batch["attention_mask"]
    inputs = (batch["input_ids"], mask, batch["token_type_ids"])
    states = apply(*inputs, keys, method="stem")

    planner = model.config.planner
    assert planner is not None
    lowest = 1 - (1 - planner.min_budget) * jnp.minimum(moment.progress / BUDGET_RAMP, 1)
    highest = jnp.maximum(lowest, planner.max_budget)
    budget = jax.random.uniform(moment.key, minval=lowest, maxval=highest)
    planned = planned_rows(batch["positions"])
    # The planner must not bend the backbone to its own ends: the backbone serves the task.
    gate_logits = apply(jax.lax.stop_gradient(states), mask, method="look")
    share = share_of_gates(model.config, budget, mask.shape[1])
    counted = batch["weights"] * planned * row_weights(model.config, mask.sum(axis=1))
    shifted: Any = meet_share(gate_logits, counted, share, AXIS)

    first, last = GATE_TEMPERATURE
    noise = logistic_noise(fold_rows(row_keys, 1), model.config.num_gates)
    gates = straight_through_gates(shifted, noise, first + (last - first) * moment.progress)
    gates = jnp.where(planned[:, None] > 0, gates, 1.0)
    states = apply(states, mask, gates, keys, method="encode")[-1]
    _, logits = apply(states, keys, method="pool")
    return Forward(logits, gates)


def final_forward(
    model: DPBert,
    params: Params,
    batch: dict[str, Array],
    row_keys: Key[Array, " B"],
    moment: Moment,
) -> Forward:
    """The hard plans of inference, each row at a budget of its own (`drawn_plans`).

    Everything that a plan depends on (embeddings, stem, planner, thresholds) is frozen and runs
    without dropout, so these are exactly the plans that evaluation would see. The refit behind the
    stage changes them once more, by what the encoder has learnt.
    """
    keys = fold_rows(row_keys, 0)
    apply: Any = partial(model.apply, {"params": params})
    mask = batch["attention_mask"]
    inputs = (batch["input_ids"], mask, batch["token_type_ids"])
    states = jax.lax.stop_gradient(apply(*inputs, method="stem"))

    config, look = model.config, apply(states, mask, method="look")
    gates = drawn_plans(config, look, batch["positions"], row_keys, moment.thresholds)
    adapters = params.get("adapters")
    states = apply(states, mask, gates, keys, adapters, method="encode")[-1]
    slots = adapter_slots(config, gates)
    _, logits = apply(states, keys, adapters, slots, method="pool")
    return Forward(logits, gates)


def drawn_plans(
    config: DPBertConfig,
    gate_logits: Float[Array, "B P"],
    positions: Int[Array, " B"],
    row_keys: Key[Array, " B"],
    thresholds: Thresholds | None,
    power: int = 2,
) -> Float[Array, "B P"]:
    """Plans as at inference, without a gradient: each row at a budget of its own.

    One row in `FULL_PATH_EVERY` runs all layers.

    Args:
        thresholds: `threshold_grid`.
        power: of what is drawn evenly from 0 to 1. At 2 half of the rows fall into the range's
            lowest quarter: small plans have furthest to go.
    """
    assert config.planner is not None and thresholds is not None
    low, high = config.planner.min_budget, config.planner.max_budget
    draw = jax.vmap(lambda key: low + (high - low) * jax.random.uniform(key) ** power)
    budgets = draw(fold_rows(row_keys, 1))
    planned = planned_rows(positions) > 0
    least = jnp.where(planned, jnp.interp(budgets, *thresholds), -jnp.inf)
    gates = hard_gates(gate_logits, least[:, None], config.num_gates, config.min_gates)
    return jax.lax.stop_gradient(gates)


def threshold_grid(config: DPBertConfig) -> Thresholds | None:
    """The budgets and thresholds of a config; None where it has none."""
    if config.calibration is None:
        return None
    grid = (config.calibration.budgets, config.calibration.thresholds)
    budgets, thresholds = (np.array(part, np.float32) for part in grid)
    return budgets, thresholds


def stage_loss(
    forward: ForwardPass,
    model: DPBert,
    params: Params,
    batch: dict[str, Array],
    moment: Moment,
) -> tuple[Array, dict[str, Array]]:
    """One shard's part of the loss, and sums for the log; parts and gradients add up over shards.

    Args:
        batch: arrays with a leading row axis; `weights` is 0 on padding rows, `positions` is the
            row's place in the global batch (it seeds the row's noise). Where a teacher is,
            `teacher_logits`, and `labelled` if some rows learn from it alone.
    """
    config: DPBertConfig = model.config
    row_keys = moment.row_keys(batch["positions"])
    out = forward(model, params, batch, row_keys, moment)

    weights = batch["weights"]
    problem = config.encoder.problem_type
    taught = batch.get("teacher_logits"), problem, batch.get("labelled")
    losses = row_losses(out.logits, batch["labels"], *taught)
    loss = jnp.sum(weights * losses) / moment.total
    layers = config.stem_layers + out.gates.sum(axis=-1)
    sums = {
        "loss": loss,
        "rows": weights.sum(),
        "layers": jnp.sum(weights * layers),
        **score_sums(out.logits, batch["labels"], weights, problem),
    }
    return loss, sums


def score_sums(
    logits: Array, labels: Array, weights: Array, problem_type: ProblemType
) -> dict[str, Array]:
    """Sums from which a running accuracy, or a running Pearson correlation, is read.

    Of several labels, the accuracy is the share of them that is right.
    """
    if problem_type == MULTI_LABEL:
        right = ((logits > 0) == (labels > 0)).mean(axis=-1)
        return {"correct": jnp.sum(weights * right)}
    if problem_type != REGRESSION:
        return {"correct": jnp.sum(weights * (logits.argmax(axis=-1) == labels))}
    x, y = logits[:, 0], labels
    moments = {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}
    return {name: jnp.sum(weights * value) for name, value in moments.items()}
