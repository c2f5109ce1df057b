"""What a run leaves for its baselines: the teacher, the rows, the steps; and a loop to train them.

A baseline starts from the run's dense model and takes as many steps as the run took after it, on
the same rows in batches of the same size, with the same optimizer.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TaskData, TokenizedSplit
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.task import recorded_columns
from dpbert_jax.model import Model
from dpbert_jax.run_folder import TEACHER, read_train_config
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.feed import Feed
from dpbert_jax.training.held_out_table import held_out_table
from dpbert_jax.training.loop import Hooks, StagePlan, run_stage
from dpbert_jax.training.rows import (
    Rows,
    global_batch_size,
    plan_stages,
    teacher_logits,
    training_rows,
)
from dpbert_jax.training.run import stage_optimizer
from dpbert_jax.training.step import Loss, create_state, make_train_step
from dpbert_jax.training.task import training_task
from dpbert_jax.training.tracker import Trackers


class Run(NamedTuple):
    """A finished run, with all that it was made from."""

    folder: Path
    model: Model
    teacher: Model
    args: TrainArguments
    task: TaskData
    rows: Rows

    @property
    def steps(self) -> int:
        """Steps that the run took after its dense stage."""
        stages = plan_stages(self.rows, self.args)
        return sum(stage.num_steps for stage in stages if stage.name != "dense")

    def teacher_logits(self, split: TokenizedSplit) -> np.ndarray:
        """What the dense model says of a split's rows; [N, C]."""
        return teacher_logits(self.teacher.config, self.teacher.params, split, self.args)


def open_run(folder: str) -> Run:
    """Loads a run and its training rows.

    Raises:
        UserError: the folder is no run with a planner, or its data is gone.
    """
    model = Model.from_pretrained(folder)
    if model.config.planner is None:
        raise UserError(f"{folder} has no planner: name the folder that train.py wrote.")
    path = model.folder
    assert path is not None
    args = TrainArguments(**read_train_config(path))
    task = training_task(args, recorded_columns(path), model.config.encoder)
    if "train" not in task.splits:
        raise UserError(f"{folder}: its data has no training split any more; put it back.")
    rows = training_rows(task, model.tokenizer, args)
    return Run(path, model, Model.from_pretrained(path / TEACHER), args, task, rows)


def mean_plan_losses(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Plans [K, P] and their mean losses [K] under the run's weights, on its held-out rows."""
    table, losses = held_out_table(
        run.model.config,
        run.model.params,
        run.rows.held_out,
        run.teacher_logits(run.rows.held_out),
        max_seq_length=run.args.max_seq_length,
        seed=run.args.seed,
    )
    return table.plans, losses.mean(axis=0)


def fit(
    run: Run,
    name: str,
    loss: Loss,
    config: DPBertConfig,
    params: Params,
    distilled: np.ndarray | None,
) -> Params:
    """Trains parameters by a loss on the run's rows; `distilled` are the teacher's logits."""
    # As the stages that the run's own backbone went through after the dense one.
    rate = run.args.backbone_learning_rate("final")
    args = dataclasses.replace(run.args, learning_rate=rate)
    plan = StagePlan("dense", 0, 0, run.steps, title=name)
    optimizer = stage_optimizer(params, config, plan, args)
    step = make_train_step(
        loss,
        optimizer,
        num_steps=plan.num_steps,
        accumulation=args.gradient_accumulation_steps,
        seed=args.seed,
    )
    feed = Feed(
        run.rows.kept,
        run.rows.kept_numbers,
        batch_size=global_batch_size(args),
        max_seq_length=args.max_seq_length,
        pad_token_id=config.encoder.pad_token_id,
        seed=args.seed,
        teacher_logits=distilled,
    )
    unsaved = Hooks(Trackers([]), args.logging_steps, plan.num_steps + 1, lambda done, state: None)
    state = run_stage(plan, step, create_state(params, optimizer), feed, unsaved)
    return jax.device_get(state.params)
