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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dpbert_jax import hosts
from dpbert_jax.bucket import BucketFolder, is_url
from dpbert_jax.config import DPBertConfig, read_config
from dpbert_jax.data import TaskData
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.calibration import calibrate
from dpbert_jax.evaluation.report import evaluate
from dpbert_jax.evaluation.task import recorded_columns
from dpbert_jax.hub import (
    load_params,
    load_tokenizer,
    resolve_folder,
    save_folder,
)
from dpbert_jax.model import Model
from dpbert_jax.policies.dpbert import DPBert, Params, init_params
from dpbert_jax.run_folder import CHECKPOINTS, HELD_OUT, TEACHER
from dpbert_jax.training.arguments import NEVER, TrainArguments
from dpbert_jax.training.best import BestEpoch
from dpbert_jax.training.checkpoint import Checkpoints, Position
from dpbert_jax.training.configs import dense_config, planned_config
from dpbert_jax.training.feed import Feed
from dpbert_jax.training.held_out_table import held_out_table
from dpbert_jax.training.loop import Hooks, StagePlan, run_stage
from dpbert_jax.training.memory import check_memory, memory_explained
from dpbert_jax.training.objective import stage_loss
from dpbert_jax.training.optimizer import make_optimizer
from dpbert_jax.training.output import open_output, write_skipped_rows
from dpbert_jax.training.preemption import Preemption
from dpbert_jax.training.refit import refit_planner
from dpbert_jax.training.rows import (
    STAGES,
    Rows,
    compute_dtype,
    global_batch_size,
    plan_stages,
    teacher_logits,
    training_rows,
)
from dpbert_jax.training.step import (
    AXIS,
    Sums,
    TrainState,
    create_state,
    make_train_step,
    own_positions,
)
from dpbert_jax.training.task import columns_of, training_task, validation_data
from dpbert_jax.training.tracker import Tracker, Trackers, make_tracker

logger = logging.getLogger(__name__)

REPORTED_BUDGETS = (1.0, 0.75, 0.6)


class _Run(NamedTuple):
    """What a run is made of and writes to."""

    args: TrainArguments
    task: TaskData
    tokenizer: Any
    rows: Rows
    folder: Path
    dense: DPBertConfig
    config: DPBertConfig  # with the planner
    checkpoints: Checkpoints
    tracker: Tracker
    preemption: Preemption


def train(args: TrainArguments) -> None:
    """Runs or resumes `train.py`; leaves a run folder as DESIGN's contract has it.

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
        _train(args, preemption, bucket)


def _train(args: TrainArguments, preemption: Preemption, bucket: BucketFolder | None) -> None:
    source = resolve_folder(args.teacher or args.model_name_or_path or "")
    before = recorded_columns(Path(args.output_dir)) if args.resume != NEVER else None
    task = training_task(args, before, read_config(source).encoder if args.teacher else None)
    if "train" not in task.splits:
        raise UserError("This data has no training split; train.py needs one.")
    columns = columns_of(task)
    hosts.check_agreement("columns", repr(columns).encode())
    dense = dense_config(source, task, args)
    config = planned_config(dense, args)
    # All that can be refused is looked at before the output folder is claimed.
    tokenizer = load_tokenizer(source)
    fresh = () if args.teacher else ("head",)
    source_params = load_params(
        source,
        dense,
        fresh=fresh,
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        seed=args.seed,
    )
    rows = training_rows(task, tokenizer, args)
    types = dense.encoder.type_vocab_size
    if dense.encoder.family.token_types and rows.kept.type_ids.max(initial=0) >= types:
        raise UserError(
            f"This data has pairs of texts, but {source} has an embedding for the first of two "
            f"only (type_vocab_size is {types}): start from another model."
        )
    plans = plan_stages(rows, args)
    check_memory(config, rows.kept.lengths, args)
    resolved = {
        **dataclasses.asdict(args),
        "global_batch_size": global_batch_size(args),
        "model": dataclasses.asdict(config),
    }
    hosts.check_agreement("flags", json.dumps(resolved).encode())
    labels = np.asarray(rows.kept.labels)
    hosts.check_agreement("training rows", rows.kept.token_ids.tobytes(), labels.tobytes())

    folder = hosts.on_main(lambda: open_output(args, global_batch_size(args), columns))
    if folder:
        write_skipped_rows(folder, task)
    checkpoints = Checkpoints(
        Path(args.output_dir) / CHECKPOINTS, resolved, on_saved=bucket.push if bucket else None
    )
    restored = checkpoints.restore(
        lambda index: _abstract_state(
            plans[index], dense if plans[index].name == "dense" else config, args
        )
    )
    global_step = restored[0] if restored else 0
    if restored:
        logger.info("Going on from step %d.", global_step)
    tracker = make_tracker(folder, args.report_to, global_step) if folder else Trackers([])
    tracker.log_config(dataclasses.asdict(args))
    run = _Run(
        args,
        task,
        tokenizer,
        rows,
        Path(args.output_dir),
        dense,
        config,
        checkpoints,
        tracker,
        preemption,
    )
    try:
        position, state = restored[1:] if restored else (Position(-1, 0), None)
        _run_stages(run, plans, position, state, source_params)
    finally:
        checkpoints.close()
        tracker.close()
        if bucket and hosts.is_main():
            bucket.push()


def _run_stages(
    run: _Run,
    plans: list[StagePlan],
    position: Position,
    state: TrainState | None,
    source_params: Params,
) -> None:
    """The stages that are left, and what is made of the last one's parameters."""
    args, config = run.args, run.config
    params: Params = state.params if state else source_params
    for plan in plans:
        if plan.index < position.stage:
            continue
        stage_config = run.dense if plan.name == "dense" else config
        if plan.name == "final":
            # The same thresholds whether from the joint stage's end or from a state of this
            # stage: they depend on frozen parameters only.
            stage_config = _calibrated(run, params)
        if plan.index > position.stage:
            if plan.name == "joint":
                # The dense model is done: it stays as the teacher, and gets a planner.
                dense_params = params
                hosts.on_main(
                    lambda dense_params=dense_params: save_folder(
                        run.folder / TEACHER, run.dense, dense_params, run.tokenizer
                    )
                )
                params = {**params, "planner": init_params(config, args.seed)["planner"]}
            state = create_state(params, stage_optimizer(params, stage_config, plan, args))
        assert state is not None
        params = _train_stage(run, plan, state, stage_config)
        if plan.name != "dense" and args.refit_planner:
            params = _refitted(run, params)
    final_config = _calibrated(run, params)
    hosts.on_main(lambda: save_folder(run.folder, final_config, params, run.tokenizer))
    _report(run, final_config, params, plans[-1])


def stage_optimizer(
    params: Params, config: DPBertConfig, plan: StagePlan, args: TrainArguments
) -> Any:
    """The optimizer of a stage, as the flags have it."""
    return make_optimizer(
        params,
        config,
        plan.name,
        num_steps=plan.num_steps,
        learning_rate=args.backbone_learning_rate(plan.name),
        planner_learning_rate=args.planner_learning_rate,
        weight_decay=args.weight_decay,
        warmup_ratio=args.warmup_ratio,
        max_grad_norm=args.max_grad_norm,
    )


def _abstract_state(plan: StagePlan, config: DPBertConfig, args: TrainArguments) -> TrainState:
    """Shapes and types of a stage's state, for restoring."""

    def make() -> TrainState:
        params = init_params(config, args.seed)
        return create_state(params, stage_optimizer(params, config, plan, args))

    return jax.eval_shape(make)


def _calibrated(run: _Run, params: Params) -> DPBertConfig:
    calibration = calibrate(
        run.config,
        params,
        run.rows.held_out,
        inputs=HELD_OUT,
        batch_size=run.args.per_device_eval_batch_size,
        max_seq_length=run.args.max_seq_length,
        dtype=compute_dtype(run.args),
    )
    return dataclasses.replace(run.config, calibration=calibration)


def _teacher(run: _Run) -> Params:
    """The parameters of the dense stage's end."""
    shapes = jax.eval_shape(lambda: init_params(run.dense, run.args.seed))
    return hosts.from_main(lambda: load_params(run.folder / TEACHER, run.dense), like=shapes)


def _train_stage(run: _Run, plan: StagePlan, state: TrainState, config: DPBertConfig) -> Params:
    args, rows = run.args, run.rows
    distilled = None
    if plan.name != "dense":
        distilled = teacher_logits(run.dense, _teacher(run), rows.kept, args)
    best = None
    if plan.name == "final" and args.keep_best is not None:
        best = BestEpoch(run.folder, config, run.task, run.tokenizer, args)

    def save(stage_step: int, state: TrainState) -> None:
        position = Position(plan.index, stage_step)
        run.checkpoints.save(plan.first_step + stage_step, position, state)

    # Stages draw from streams of their own.
    seed = args.seed * len(STAGES) + STAGES.index(plan.name)
    model = DPBert(config, compute_dtype(args), args.gradient_checkpointing)
    compiled = make_train_step(
        partial(stage_loss, plan.name, model, axis_name=AXIS),
        stage_optimizer(state.params, config, plan, args),
        num_steps=plan.num_steps,
        accumulation=args.gradient_accumulation_steps,
        seed=seed,
    )

    def step(
        state: TrainState, batch: dict[str, np.ndarray], signal: int
    ) -> tuple[TrainState, Sums]:
        run.checkpoints.check()  # a save in the background may have failed since
        with memory_explained(config, rows.kept.lengths, args):
            return compiled(state, batch, signal)

    feed = Feed(
        rows.kept,
        rows.kept_numbers,
        batch_size=global_batch_size(args),
        max_seq_length=args.max_seq_length,
        pad_token_id=config.encoder.pad_token_id,
        seed=seed,
        teacher_logits=distilled,
        own=own_positions(global_batch_size(args), args.gradient_accumulation_steps),
    )
    hooks = Hooks(
        run.tracker,
        args.logging_steps,
        args.save_steps,
        save,
        end_epoch=best.consider if best else None,
        preemption=run.preemption,
    )
    state = run_stage(plan, step, state, feed, hooks)
    return best.params() if best else jax.device_get(state.params)


def _refitted(run: _Run, params: Params) -> Params:
    """The parameters with a planner fitted anew, on rows that nothing was trained on."""
    held_out, args = run.rows.held_out, run.args
    table, losses = held_out_table(
        run.config,
        params,
        held_out,
        teacher_logits(run.dense, _teacher(run), held_out, args),
        max_seq_length=args.max_seq_length,
        seed=args.seed,
    )
    return {**params, "planner": refit_planner(run.config, table, losses, args.seed)}


def _report(run: _Run, config: DPBertConfig, params: Params, last: StagePlan) -> None:
    """Scores the run as it was saved."""
    args = run.args
    shared = (run.tokenizer, args.max_seq_length, run.folder, compute_dtype(args))
    results = evaluate(
        Model(config, params, *shared),
        Model(run.dense, _teacher(run), *shared),
        EvalArguments(
            model_name_or_path=str(run.folder),
            budget=[
                budget
                for budget in REPORTED_BUDGETS
                if budget == 1 or args.min_budget <= budget <= args.max_budget
            ],
            max_eval_samples=args.max_eval_samples,
            bf16=args.bf16,
            **validation_data(args, run.task),
        ),
    )
    logged = ("score", "score_kept", "mean_layers", "cost", "distinct_plans")
    for result in results:
        phase = f"eval/{result['split']}/{result['budget']:g}"
        scores = {f"eval_{name}": value for name, value in result["metrics"].items()}
        values = {f"eval_{name}": result[name] for name in logged}
        run.tracker.log(
            last.first_step + last.num_steps,
            {"phase": phase, "budget": result["budget"], **scores, **values},
        )
