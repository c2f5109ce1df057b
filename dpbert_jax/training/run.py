"""A whole run: dense fine-tuning, joint training, fine-tuning on final plans.

Behind each of the last two the planner is refitted: what a plan is worth to a row changes as the
encoder learns.

Resuming repeats the same four lines, whatever was interrupted:
1. read the newest good checkpoint: it names its stage and step;
2. skip the stages before it;
3. rebuild what the stage needs from what is on disk (teacher, thresholds), by the same programs;
4. go on with the next batch of the schedule, which follows from (seed, stage, step).

With several processes all of them go through the same lines; process 0 alone reads and writes the
run's folder, and tells the others what it read.
"""

import dataclasses
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dpbert_jax import hosts
from dpbert_jax.bucket import BucketFolder, is_url
from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import default_buckets, num_batches
from dpbert_jax.encoder.operations import Params
from dpbert_jax.evaluation.calibration import calibrate
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.hub import load_params, save_folder
from dpbert_jax.model import Model
from dpbert_jax.policies.dpbert import init_params
from dpbert_jax.programs import on_host
from dpbert_jax.run_folder import CHECKPOINTS, TEACHER
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.asking import Asking, asker, asking, teacher_logits
from dpbert_jax.training.best import BestEpoch
from dpbert_jax.training.checkpoint import Checkpoints, Position
from dpbert_jax.training.held_out_table import held_out_table
from dpbert_jax.training.last_report import last_report
from dpbert_jax.training.loop import Hooks, run_span
from dpbert_jax.training.memory import check_memory, memory_explained
from dpbert_jax.training.objective import threshold_grid
from dpbert_jax.training.output import open_output, write_skipped_rows
from dpbert_jax.training.preemption import Preemption
from dpbert_jax.training.prepare import Material, prepare
from dpbert_jax.training.refit import refit_planner
from dpbert_jax.training.stage import (
    PlannedStage,
    Stage,
    abstract_state,
    all_epochs,
    plan_stages,
    stage_optimizer,
    stage_seed,
)
from dpbert_jax.training.stage_steps import (
    batch_rows,
    begin_compiling,
    make_feed,
    make_step,
    stage_config,
    step_size,
)
from dpbert_jax.training.step import Sums, TrainState, TrainStep, create_state
from dpbert_jax.training.task import columns_of
from dpbert_jax.training.tracker import Tracker, Trackers, make_tracker
from dpbert_jax.training.transfer import TransferSets, as_they_are, partly_masked

logger = logging.getLogger(__name__)


class _Output(NamedTuple):
    """Where a run writes to."""

    folder: Path
    checkpoints: Checkpoints
    tracker: Tracker


@dataclass(frozen=True)
class _Run:
    """What was asked for, what it is made of, and where it goes."""

    args: TrainArguments
    material: Material
    stages: list[PlannedStage]
    output: _Output
    preemption: Preemption
    asking: Asking
    steps: list[TrainStep]  # of each stage

    @property
    def dtype(self) -> Any:
        return compute_dtype(self.args.bf16)

    def planned(self, params: Params) -> DPBertConfig:
        """The config of parameters with a planner."""
        return self.material.adapted if "adapters" in params else self.material.planned

    def model(self, config: DPBertConfig, params: Params) -> Model:
        """The parameters with all that executors need beside them."""
        shared = (self.material.tokenizer, self.args.max_seq_length, self.output.folder, self.dtype)
        return Model(config, params, *shared)

    def teacher(self) -> Model:
        """The dense model that later stages learn from, as it was saved."""
        dense = self.material.dense
        shapes = jax.eval_shape(lambda: init_params(dense, self.args.seed))
        folder = self.output.folder / TEACHER
        params = hosts.from_main(lambda: load_params(folder, dense), like=shapes)
        return self.asking.teacher(self.model(dense, params), self.material.planned)

    @cached_property
    def teacher_logits(self) -> np.ndarray:
        """What the dense model says of the training rows; [N, C]."""
        return teacher_logits(self.teacher(), self.material.rows.kept, self.asking)

    def transfer(self, stage: Stage) -> TransferSets:
        """What a stage distils from."""
        kept, share = self.material.rows.kept, self.args.masked_share
        if not share:
            return as_they_are(kept, self.teacher_logits)
        return partly_masked(
            kept,
            self.teacher_logits,
            share,
            ask=asker(self.teacher(), self.asking.in_batches(self.args)),
            tokenizer=self.material.tokenizer,
            seed=stage_seed(stage, self.args.seed),
        )


def train(args: TrainArguments, platform: str | None = None) -> None:
    """Runs or resumes `train.py`; leaves a run folder as DESIGN's contract has it.

    Args:
        platform: the kind of device (cpu, gpu, tpu) whose lengths and programs the run has.
            Default: the one that it runs on.

    Raises:
        SystemExit: SIGTERM or SIGINT came; what was done is saved.
    """
    if args.multihost or hosts.is_one_of_many(os.environ):
        hosts.initialize()
    bucket = None
    if is_url(args.output_dir):
        bucket = BucketFolder(args.output_dir)
        hosts.on_main(bucket.pull)
        args = dataclasses.replace(args, output_dir=str(bucket.local))
    with Preemption() as preemption:
        _train(args, platform or jax.default_backend(), preemption, bucket)


def _train(
    args: TrainArguments, platform: str, preemption: Preemption, bucket: BucketFolder | None
) -> None:
    material = prepare(args, platform)
    if args.length_buckets is None:
        lengths = (material.rows.kept.lengths, args.max_seq_length)
        buckets = default_buckets(platform, *lengths, epochs=all_epochs(args))
        args = dataclasses.replace(args, length_buckets=buckets)
    rows, columns = material.rows, columns_of(material.task)
    check_memory(material.planned, step_size(material, args))
    batch_size = batch_rows(args)
    stages = plan_stages(num_batches(len(rows.kept), batch_size), args)
    resolved = {
        **dataclasses.asdict(args),
        "global_batch_size": batch_size,
        "model": dataclasses.asdict(material.planned),
    }
    hosts.check_agreement("flags", json.dumps(resolved).encode())
    labels = np.asarray(rows.kept.labels)
    hosts.check_agreement("training rows", rows.kept.token_ids.tobytes(), labels.tobytes())

    folder = hosts.on_main(lambda: open_output(args, batch_size, columns))
    if folder:
        write_skipped_rows(folder, material.task)
    checkpoints = Checkpoints(
        Path(args.output_dir) / CHECKPOINTS, resolved, on_saved=bucket.push if bucket else None
    )
    restored = checkpoints.restore(
        lambda index: abstract_state(
            stages[index], stage_config(material, stages[index].stage), args
        )
    )
    global_step = restored[0] if restored else 0
    if restored:
        logger.info("Going on from step %d.", global_step)
    tracker = make_tracker(folder, args.report_to, global_step) if folder else Trackers([])
    tracker.log_config(dataclasses.asdict(args))
    output = _Output(Path(args.output_dir), checkpoints, tracker)
    steps = [make_step(args, material, planned) for planned in stages]
    run = _Run(args, material, stages, output, preemption, asking(platform, args), steps)
    # Threads, since XLA compiles outside of Python's lock.
    pool = ThreadPoolExecutor(os.cpu_count(), "compile")
    try:
        position, state = restored[1:] if restored else (Position(-1, 0), None)
        # Processes that compile in orders of their own could wait for each other.
        if run.asking.by_one_program and jax.process_count() == 1:
            left = list(zip(stages, steps, strict=True))[max(position.stage, 0) :]
            begin_compiling(args, material, left, pool)
        _run_stages(run, position, state)
    finally:
        pool.shutdown(cancel_futures=True)
        checkpoints.close()
        tracker.close()
        if bucket and hosts.is_main():
            bucket.push()


def _run_stages(run: _Run, position: Position, state: TrainState | None) -> None:
    """The stages that are left, and what is made of the last one's parameters."""
    params: Params = state.params if state else run.material.params
    for index, (stage, span) in enumerate(run.stages):
        if index < position.stage:
            continue
        begins = index > position.stage
        if begins:
            params = _handed_over(run, index, params)
        config = stage_config(run.material, stage)
        if stage.needs_calibration:
            # The same thresholds at the stage's start as from a state of its middle: they depend on
            # parameters that it freezes.
            config = _calibrated(run, params)
        if begins:
            with on_host(run.asking.platform):
                optimizer = stage_optimizer(params, stage, span, config, run.args)
                state = create_state(params, optimizer)
        assert state is not None
        params = _train_stage(run, index, state, config)
        if stage.needs_planner and run.args.refit_planner:
            params = _refitted(run, params)
    config, folder = _calibrated(run, params), run.output.folder
    hosts.on_main(lambda: save_folder(folder, config, params, run.material.tokenizer))
    last, model = run.stages[-1].span, run.model(config, params)
    for line in last_report(run.args, run.material.task, model, run.teacher(), run.asking):
        run.output.tracker.log(last.first_step + last.num_steps, line)


def _handed_over(run: _Run, index: int, params: Params) -> Params:
    """What a stage begins with, of the parameters that the one before it ended with."""
    stage = run.stages[index].stage
    if stage.needs_teacher and not (index and run.stages[index - 1].stage.needs_teacher):
        # The dense model is done: it stays as the teacher.
        folder, dense = run.output.folder / TEACHER, run.material.dense
        hosts.on_main(lambda: save_folder(folder, dense, params, run.material.tokenizer))
    config, needed = stage_config(run.material, stage), ("planner", "adapters")
    absent = [name for name in needed if getattr(config, name) and name not in params]
    if not absent:
        return params
    with on_host(run.asking.platform):
        return {**params, **jax.device_get(init_params(config, run.args.seed, absent))}


def _calibrated(run: _Run, params: Params) -> DPBertConfig:
    planned = run.planned(params)
    calibration = calibrate(
        planned,
        params,
        run.material.rows.held_out,
        inputs="rows held out of training",
        batch_size=run.args.per_device_eval_batch_size,
        max_seq_length=run.args.max_seq_length,
        length_buckets=run.args.length_buckets,
        dtype=run.dtype,
        look=run.asking.look(run.model(planned, params)),
    )
    return dataclasses.replace(planned, calibration=calibration)


def _train_stage(run: _Run, index: int, state: TrainState, config: DPBertConfig) -> Params:
    args, (stage, span) = run.args, run.stages[index]
    material, checkpoints = run.material, run.output.checkpoints
    best = None
    if stage.keeps_best and args.keep_best is not None:
        best = BestEpoch(
            run.output.folder,
            config,
            material.task,
            material.tokenizer,
            budget=args.keep_best,
            max_seq_length=args.max_seq_length,
            max_eval_samples=args.max_eval_samples,
            dtype=run.dtype,
            asking=run.asking,
        )

    def save(stage_step: int, state: TrainState) -> None:
        checkpoints.save(span.first_step + stage_step, Position(index, stage_step), state)

    train_step, thresholds = run.steps[index], threshold_grid(config)
    size = step_size(material, args)

    def step(
        state: TrainState, batch: dict[str, np.ndarray], signal: int
    ) -> tuple[TrainState, Sums]:
        checkpoints.check()  # a save in the background may have failed since
        with memory_explained(config, size):
            return train_step(state, batch, signal, thresholds)

    feed = make_feed(args, material, stage, run.transfer(stage) if stage.needs_teacher else None)
    hooks = Hooks(
        run.output.tracker,
        args.logging_steps,
        args.save_steps,
        save,
        end_epoch=best.consider if best else None,
        preemption=run.preemption,
    )
    state = run_span(span, step, state, feed, hooks)
    return best.params() if best else jax.device_get(state.params)


def _refitted(run: _Run, params: Params) -> Params:
    """The parameters with a planner fitted anew, on rows that nothing was trained on."""
    held_out, planned = run.material.rows.held_out, run.planned(params)
    table, losses = held_out_table(
        planned,
        params,
        held_out,
        teacher_logits(run.teacher(), held_out, run.asking),
        max_seq_length=run.args.max_seq_length,
        seed=run.args.seed,
        length_buckets=run.args.length_buckets,
        platform=run.asking.platform,
    )
    with on_host(run.asking.platform):
        return {**params, "planner": refit_planner(planned, table, losses, run.args.seed)}
