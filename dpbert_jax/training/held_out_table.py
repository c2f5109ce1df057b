"""The table that the planner is refitted to: how far each plan is from the dense model's answer."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TokenizedSplit
from dpbert_jax.encoder.operations import Params
from dpbert_jax.policies.planner import judge
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, ProblemType
from dpbert_jax.programs import on_host
from dpbert_jax.training.objective import label_divergence
from dpbert_jax.training.plan_bank import (
    EXHAUSTIVE_GATES,
    all_plans,
    best_of_each_depth,
    drawn_plans,
)
from dpbert_jax.training.plan_table import PlanTable, make_table

SCREENING_ROWS = 128


def plan_losses(
    logits: Float[np.ndarray, "N K C"],
    teacher_logits: Float[np.ndarray, "N C"],
    problem_type: ProblemType,
) -> Float[np.ndarray, "N K"]:
    """How far each plan's answer to each row is from the dense model's.

    Classification: KL from the teacher, of several labels the mean over them. Regression: squared
    error to the teacher. The labels are not asked: with them planners came out no better
    (docs/experiments.md).
    """
    every, teacher = jnp.asarray(logits), jnp.asarray(teacher_logits)[:, None]
    if problem_type == REGRESSION:
        return np.asarray(jnp.square(every - teacher)[..., 0])
    if problem_type == MULTI_LABEL:
        return np.asarray(label_divergence(every, jnp.broadcast_to(teacher, every.shape)))
    kl = optax.kl_divergence(jax.nn.log_softmax(every), jax.nn.softmax(teacher))
    return np.asarray(kl)


def held_out_table(
    config: DPBertConfig,
    params: Params,
    split: TokenizedSplit,
    teacher_logits: np.ndarray,
    *,
    max_seq_length: int,
    seed: int,
    length_buckets: Sequence[int] | None = None,
    platform: str = "cpu",
) -> tuple[PlanTable, Float[np.ndarray, "N K"]]:
    """The plan table of held-out rows with its losses (`plan_losses`).

    All plans where the planner decides on at most 8 layers; for deeper models the best of each
    depth, and the best chain, among chains drawn by the planner's mean logits, screened on a few
    rows. `platform` is the kind of device that runs the plans.
    """
    problem = config.encoder.problem_type
    sized = partial(make_table, max_seq_length=max_seq_length, length_buckets=length_buckets)
    if config.num_gates <= EXHAUSTIVE_GATES:
        plans = all_plans(config)
    else:
        few = split.take(np.arange(min(SCREENING_ROWS, len(split))))
        nothing = np.zeros((1, config.num_gates), np.float32)  # only its features are asked for
        probe = sized(config, params, few, nothing)
        with on_host(platform):
            read = jnp.asarray(probe.features)
            preference = judge(config, params["planner"], read).mean(axis=0)
        drawn = drawn_plans(config, np.asarray(preference), seed)
        screened = sized(config, params, few, drawn)
        with on_host(platform):
            losses = plan_losses(screened.logits, teacher_logits[: len(few)], problem)
        plans = best_of_each_depth(config, drawn, losses.mean(axis=0))
    table = sized(config, params, split, plans)
    with on_host(platform):
        return table, plan_losses(table.logits, teacher_logits, problem)
