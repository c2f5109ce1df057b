"""The stages of a run as what it does: their steps, compiled ahead or not, and their rows."""

from concurrent.futures import Executor
from functools import partial

import jax
import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import bucket_length
from dpbert_jax.evaluation.calibration import budget_grid
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.policies.dpbert import DPBert, init_params
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.feed import Feed
from dpbert_jax.training.memory import StepSize
from dpbert_jax.training.prepare import Material
from dpbert_jax.training.rows import global_batch_size
from dpbert_jax.training.stage import (
    PlannedStage,
    Stage,
    abstract_state,
    loss_of,
    stage_optimizer,
    stage_seed,
)
from dpbert_jax.training.step import TrainStep, own_positions
from dpbert_jax.training.transfer import TransferSet, TransferSets


def stage_config(material: Material, stage: Stage) -> DPBertConfig:
    """What a stage trains, without thresholds."""
    if stage.needs_adapters:
        return material.adapted
    return material.planned if stage.needs_planner else material.dense


def batch_rows(args: TrainArguments) -> int:
    """Rows of a global batch."""
    return global_batch_size(args.per_device_train_batch_size, args.gradient_accumulation_steps)


def step_size(material: Material, args: TrainArguments) -> StepSize:
    """Of the longest rows."""
    longest = int(material.rows.kept.lengths.max())
    return StepSize(
        args.per_device_train_batch_size,
        bucket_length(longest, args.max_seq_length, args.length_buckets),
        args.bf16,
        args.gradient_checkpointing,
    )


def make_step(args: TrainArguments, material: Material, planned: PlannedStage) -> TrainStep:
    """The step of a stage; its thresholds are given to each call."""
    stage, span = planned
    config = stage_config(material, stage)
    model = DPBert(config, compute_dtype(args.bf16), args.gradient_checkpointing)
    params = jax.eval_shape(lambda: init_params(config, args.seed))
    return TrainStep(
        partial(loss_of, stage, model),
        stage_optimizer(params, stage, span, config, args),
        num_steps=span.num_steps,
        accumulation=args.gradient_accumulation_steps,
        seed=stage_seed(stage, args.seed),
    )


def make_feed(
    args: TrainArguments, material: Material, stage: Stage, transfer: TransferSets | None
) -> Feed:
    """The rows of a stage, and what it distils from."""
    return Feed(
        material.rows.kept,
        material.rows.kept_numbers,
        batch_size=batch_rows(args),
        max_seq_length=args.max_seq_length,
        pad_token_id=material.dense.encoder.pad_token_id,
        seed=stage_seed(stage, args.seed),
        length_buckets=args.length_buckets,
        transfer=transfer,
        own=own_positions(batch_rows(args), args.gradient_accumulation_steps),
    )


def begin_compiling(
    args: TrainArguments,
    material: Material,
    left: list[tuple[PlannedStage, TrainStep]],
    pool: Executor,
) -> None:
    """Has the steps of the stages that are left compiled while the run goes on.

    For an accelerator: its compiler runs on host cores that are idle then.
    """
    budgets, rows = len(budget_grid(args.min_budget)), material.rows.kept

    logits = np.zeros((len(rows), material.dense.encoder.num_labels), np.float32)
    masked = np.zeros(len(rows), bool) if args.masked_share else None
    silent = TransferSet(rows, logits, masked)  # what is said changes no program

    for planned, step in left:
        stage, config = planned.stage, stage_config(material, planned.stage)
        transfer: TransferSets | None = (lambda epoch: silent) if stage.needs_teacher else None
        thresholds = None
        if stage.needs_calibration:
            thresholds = (np.zeros(budgets, np.float32), np.zeros(budgets, np.float32))
        state = abstract_state(planned, config, args)
        for batch in make_feed(args, material, stage, transfer).examples():
            step.begin(pool, state, batch, thresholds)
