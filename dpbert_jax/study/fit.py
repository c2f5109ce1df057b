"""What a run leaves for its baselines: the teacher, the rows, the steps; and a loop to train them.

A baseline starts from the run's dense model and takes as many steps as the run took after it, on
the same rows in batches of the same size, with the same optimizer.
"""

import dataclasses
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TaskData, TokenizedSplit, num_batches
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.evaluation.task import recorded_columns
from dpbert_jax.hub import save_folder
from dpbert_jax.integrity import update_sums
from dpbert_jax.model import Model
from dpbert_jax.run_folder import BASELINES, TEACHER, TRAIN_CONFIG
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.asking import Asking, asker, asking, teacher_logits
from dpbert_jax.training.feed import Feed
from dpbert_jax.training.held_out_table import held_out_table
from dpbert_jax.training.loop import Hooks, Span, run_span
from dpbert_jax.training.objective import threshold_grid
from dpbert_jax.training.optimizer import make_optimizer
from dpbert_jax.training.output import recorded_arguments
from dpbert_jax.training.rows import Rows, global_batch_size, training_rows
from dpbert_jax.training.stage import plan_stages
from dpbert_jax.training.step import Loss, TrainStep, create_state
from dpbert_jax.training.task import training_task
from dpbert_jax.training.tracker import Trackers
from dpbert_jax.training.transfer import TransferSets, as_they_are, partly_masked


class Run(NamedTuple):
    """A finished run, with all that it was made from."""

    folder: Path
    model: Model
    teacher: Model
    args: TrainArguments
    task: TaskData
    rows: Rows

    @property
    def batch_size(self) -> int:
        """Rows that a step learns from."""
        args = self.args
        return global_batch_size(args.per_device_train_batch_size, args.gradient_accumulation_steps)

    @property
    def steps(self) -> int:
        """Steps that the run took after it had its dense model."""
        stages = plan_stages(num_batches(len(self.rows.kept), self.batch_size), self.args)
        return sum(span.num_steps for stage, span in stages if stage.needs_teacher)

    def save_baseline(self, name: str, config: DPBertConfig, params: Params) -> Path:
        """Leaves a model of the run's backbone among its baselines: of its data, cut as it cuts."""
        folder = self.folder / BASELINES / name
        save_folder(folder, config, params, self.model.tokenizer)
        shutil.copyfile(self.folder / TRAIN_CONFIG, folder / TRAIN_CONFIG)
        update_sums(folder, [TRAIN_CONFIG])
        return folder

    def teacher_logits(self, split: TokenizedSplit) -> np.ndarray:
        """What the dense model says of a split's rows; [N, C]."""
        teacher, how = self._asked()
        return teacher_logits(teacher, split, how)

    def _asked(self) -> tuple[Model, Asking]:
        """The dense model, and how it is asked."""
        dtype, longest = compute_dtype(self.args.bf16), self.args.max_seq_length
        teacher = dataclasses.replace(self.teacher, dtype=dtype, max_seq_length=longest)
        how = asking(jax.default_backend(), self.args)
        return how.teacher(teacher, self.model.config), how

    def transfer(self) -> TransferSets:
        """What the run's own stages distil from."""
        kept, share = self.rows.kept, self.args.masked_share
        if not share:
            return as_they_are(kept, self.teacher_logits(kept))
        teacher, how = self._asked()
        return partly_masked(
            kept,
            self.teacher_logits(kept),
            share,
            ask=asker(teacher, how.in_batches(self.args)),
            tokenizer=self.model.tokenizer,
            seed=self.args.seed,
        )


def open_run(folder: str) -> Run:
    """Loads a run and its training rows.

    Raises:
        UserError: the folder is no run with a planner, or its data is gone.
    """
    model = Model.from_pretrained(folder)
    if model.config.planner is None:
        raise UserError(f"{folder} has no planner: name the folder that train.py wrote.")
    if model.config.encoder.compression:
        raise UserError(
            f"{folder} has compressed embeddings: name the run that it was made of, whose rows and "
            "teacher are there."
        )
    if model.config.token_selectors:
        raise UserError(
            f"{folder} drops tokens: name the run that it was trained for, whose teacher is there."
        )
    path = model.folder
    assert path is not None
    args = recorded_arguments(path)
    task = training_task(args, recorded_columns(path), model.config.encoder)
    if "train" not in task.splits:
        raise UserError(f"{folder}: its data has no training split any more; put it back.")
    rows = training_rows(
        task,
        model.tokenizer,
        max_seq_length=args.max_seq_length,
        max_train_samples=args.max_train_samples,
        seed=args.seed,
    )
    return Run(path, model, Model.from_pretrained(path / TEACHER), args, task, rows)


def held_out_losses(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Plans [K, P] and their losses [N, K] under the run's weights, on its held-out rows."""
    table, losses = held_out_table(
        run.model.config,
        run.model.params,
        run.rows.held_out,
        run.teacher_logits(run.rows.held_out),
        max_seq_length=run.args.max_seq_length,
        seed=run.args.seed,
        length_buckets=run.args.length_buckets,
        platform=jax.default_backend(),
    )
    return table.plans, losses


def fit(
    run: Run,
    name: str,
    loss: Loss,
    config: DPBertConfig,
    params: Params,
    transfer: TransferSets | None,
    *,
    num_steps: int | None = None,
    frozen: Collection[str] = (),
    seed: int | None = None,
) -> Params:
    """Trains parameters by a loss on the run's rows.

    Args:
        transfer: what the loss distils from.
        num_steps: default: as many as the run took after it had its dense model.
        frozen: parts that stay as they are.
        seed: of batches and draws. Default: the run's.
    """
    args, span = run.args, Span(name, 0, run.steps if num_steps is None else num_steps)
    seed = args.seed if seed is None else seed
    optimizer = make_optimizer(
        params,
        frozen=frozen,
        num_steps=span.num_steps,
        # As the run's own backbone after the dense stage.
        learning_rate=args.student_learning_rate,
        planner_learning_rate=args.planner_learning_rate,
        adapter_learning_rate=args.adapter_learning_rate,
        weight_decay=args.weight_decay,
        warmup_ratio=args.warmup_ratio,
        max_grad_norm=args.max_grad_norm,
    )
    step = TrainStep(
        loss,
        optimizer,
        num_steps=span.num_steps,
        accumulation=args.gradient_accumulation_steps,
        seed=seed,
    )
    feed = Feed(
        run.rows.kept,
        run.rows.kept_numbers,
        batch_size=run.batch_size,
        max_seq_length=args.max_seq_length,
        pad_token_id=config.encoder.pad_token_id,
        seed=seed,
        length_buckets=args.length_buckets,
        transfer=transfer,
    )
    step = partial(step, thresholds=threshold_grid(config))
    unsaved = Hooks(Trackers([]), args.logging_steps, span.num_steps + 1, lambda done, state: None)
    state = run_span(span, step, create_state(params, optimizer), feed, unsaved)
    return jax.device_get(state.params)
