"""A whole run: dense fine-tuning, joint training, planner refit, fine-tuning on final plans.

Resuming repeats the same four lines, whatever was interrupted:
1. read the newest good checkpoint: it names its stage and step;
2. skip the stages before it;
3. rebuild what the stage needs from what is on disk (teacher, thresholds), by the same programs;
4. go on with the next batch of the schedule, which follows from (seed, stage, step).
"""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax

from dpbert_jax.config import DPBertConfig, PlannerConfig, read_config
from dpbert_jax.convert import (
    load_params,
    load_tokenizer,
    resolve_folder,
    save_folder,
)
from dpbert_jax.data import TaskData, load_task
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.calibration import calibrate
from dpbert_jax.evaluation.report import evaluate_run
from dpbert_jax.model import DPBert, Params, init_params
from dpbert_jax.model.cost import planner_share
from dpbert_jax.run_folder import CHECKPOINTS, TEACHER
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.checkpoint import Checkpoints, Position
from dpbert_jax.training.loop import StagePlan, run_stage
from dpbert_jax.training.objective import stage_loss
from dpbert_jax.training.optimizer import make_optimizer
from dpbert_jax.training.output import open_output
from dpbert_jax.training.refit import held_out_table, refit_planner
from dpbert_jax.training.rows import (
    STAGES,
    Rows,
    compute_dtype,
    global_batch_size,
    plan_stages,
    teacher_logits,
    training_rows,
)
from dpbert_jax.training.step import AXIS, TrainState, create_state, make_train_step
from dpbert_jax.training.tracker import Tracker, make_tracker

logger = logging.getLogger(__name__)

REPORTED_BUDGETS = (1.0, 0.75, 0.6)


def train(args: TrainArguments) -> None:
    """Runs or resumes `train.py`; leaves a run folder as DESIGN's contract has it."""
    task = load_task(
        task_name=args.task_name,
        data_dir=args.data_dir,
        train_file=args.train_file,
        validation_file=args.validation_file,
    )
    if "train" not in task.splits:
        raise UserError("This data has no training split; train.py needs one.")
    source = resolve_folder(args.teacher or args.model_name_or_path or "")
    dense_config = _dense_config(source, task, args)
    config = _planned_config(dense_config, args)
    # All that can be refused is looked at before the output folder is claimed.
    tokenizer = load_tokenizer(source)
    fresh = () if args.teacher else ("classifier", "bert.pooler")
    source_params = load_params(source, dense_config, fresh=fresh, seed=args.seed)
    folder = open_output(args)
    rows = training_rows(task, tokenizer, args)
    plans = plan_stages(rows, args)

    checkpoints = Checkpoints(folder / CHECKPOINTS)
    configs = {"dense": dense_config, "joint": config, "final": config}
    restored = None
    if args.resume:
        restored = checkpoints.restore(
            lambda index: _abstract_state(plans[index], configs[plans[index].name], args)
        )
    global_step, position, state = restored or (0, Position(-1, 0), None)
    if args.resume:
        logger.info("Going on from step %d.", global_step)
    tracker = make_tracker(folder, args.report_to, global_step)
    tracker.log_config(dataclasses.asdict(args))
    try:
        params: Params = state.params if state else source_params
        for plan in plans:
            if plan.index < position.stage:
                continue
            stage_config = configs[plan.name]
            if plan.name == "final":
                # The same thresholds whether from the joint stage's end or from a state of this
                # stage: they depend on frozen parameters only.
                stage_config = _calibrated(stage_config, params, rows, args)
            if plan.index > position.stage:
                if plan.name == "joint":
                    # The dense model is done: it stays as the teacher, and gets a planner.
                    save_folder(folder / TEACHER, dense_config, params, tokenizer)
                    params = {**params, "planner": init_params(config, args.seed)["planner"]}
                state = create_state(params, stage_optimizer(params, stage_config, plan, args))
            assert state is not None
            params = _train_stage(
                plan, state, stage_config, rows, folder, tracker, checkpoints, args
            )
            if plan.name == "joint" and args.refit_planner:
                params = _refitted(config, params, rows, folder, args)
        final_config = _calibrated(config, params, rows, args)
        save_folder(folder, final_config, params, tokenizer)
        _report(folder, tracker, plans[-1], args)
    finally:
        checkpoints.close()
        tracker.close()


def _dense_config(source: Path, task: TaskData, args: TrainArguments) -> DPBertConfig:
    """The backbone's config with the task's head."""
    found, spec = read_config(source), task.spec
    if args.max_seq_length > found.bert.max_position_embeddings:
        raise UserError(
            f"--max_seq_length is {args.max_seq_length}, but {source} has positions for "
            f"{found.bert.max_position_embeddings} tokens."
        )
    bert = dataclasses.replace(
        found.bert,
        num_labels=spec.num_labels,
        labels=spec.labels,
        is_regression=spec.is_regression,
    )
    if args.teacher:
        if found.planner:
            raise UserError(
                f"--teacher {source} has a planner already; name a dense model, such as the "
                "`teacher` folder inside a run."
            )
        same_head = (found.bert.num_labels, found.bert.is_regression) == (
            spec.num_labels,
            spec.is_regression,
        )
        if not same_head or (found.bert.labels and found.bert.labels != spec.labels):
            raise UserError(
                f"--teacher {source} was fine-tuned for the labels {found.bert.labels}, but the "
                f"task's are {spec.labels}."
            )
    return DPBertConfig(bert)


def _planned_config(dense: DPBertConfig, args: TrainArguments) -> DPBertConfig:
    """The same with a planner, for budgets that can be had."""
    layers = dense.bert.num_hidden_layers
    min_layers = layers // 3 if args.min_layers is None else args.min_layers
    planner = PlannerConfig(
        args.stem_layers,
        min_budget=args.min_budget,
        max_budget=args.max_budget,
        min_layers=min_layers,
    )
    config = dataclasses.replace(dense, planner=planner)
    fixed = config.stem_layers + config.min_gates
    lowest = fixed / layers + planner_share(config, 16)
    if args.min_budget <= lowest:
        raise UserError(
            f"--min_budget is {args.min_budget}, but the {fixed} layer(s) that every input runs "
            f"and the planner cost {lowest:.3f}: ask for more, or for smaller --stem_layers and "
            "--min_layers."
        )
    return config


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


def _calibrated(
    config: DPBertConfig, params: Params, rows: Rows, args: TrainArguments
) -> DPBertConfig:
    calibration = calibrate(
        config,
        params,
        rows.held_out,
        batch_size=args.per_device_eval_batch_size,
        max_seq_length=args.max_seq_length,
        dtype=compute_dtype(args),
    )
    return dataclasses.replace(config, calibration=calibration)


def _train_stage(
    plan: StagePlan,
    state: TrainState,
    config: DPBertConfig,
    rows: Rows,
    folder: Path,
    tracker: Tracker,
    checkpoints: Checkpoints,
    args: TrainArguments,
) -> Params:
    distilled = None if plan.name == "dense" else teacher_logits(folder, rows.kept, args)

    def save(stage_step: int, state: TrainState) -> None:
        checkpoints.save(plan.first_step + stage_step, Position(plan.index, stage_step), state)

    # Stages draw from streams of their own.
    seed = args.seed * len(STAGES) + STAGES.index(plan.name)
    step = make_train_step(
        partial(stage_loss, plan.name, DPBert(config, compute_dtype(args)), axis_name=AXIS),
        stage_optimizer(state.params, config, plan, args),
        num_steps=plan.num_steps,
        accumulation=args.gradient_accumulation_steps,
        seed=seed,
    )
    state = run_stage(
        plan,
        step,
        state,
        rows.kept,
        distilled,
        row_numbers=rows.kept_numbers,
        batch_size=global_batch_size(args),
        max_seq_length=args.max_seq_length,
        pad_token_id=config.bert.pad_token_id,
        seed=seed,
        logging_steps=args.logging_steps,
        save_steps=args.save_steps,
        tracker=tracker,
        save=save,
        is_regression=config.bert.is_regression,
    )
    return jax.device_get(state.params)


def _refitted(
    config: DPBertConfig, params: Params, rows: Rows, folder: Path, args: TrainArguments
) -> Params:
    """The parameters with a planner fitted anew, on rows that nothing was trained on."""
    table, losses = held_out_table(
        config,
        params,
        rows.held_out,
        teacher_logits(folder, rows.held_out, args),
        max_seq_length=args.max_seq_length,
        seed=args.seed,
    )
    return {**params, "planner": refit_planner(config, table, losses, args.seed)}


def _report(folder: Path, tracker: Tracker, last: StagePlan, args: TrainArguments) -> None:
    """Scores the run as it was saved."""
    results = evaluate_run(
        EvalArguments(
            model_name_or_path=str(folder),
            budget=[
                budget
                for budget in REPORTED_BUDGETS
                if budget == 1 or args.min_budget <= budget <= args.max_budget
            ],
            max_eval_samples=args.max_eval_samples,
            bf16=args.bf16,
        )
    )
    logged = ("score", "score_kept", "mean_layers", "cost", "distinct_plans")
    for result in results:
        phase = f"eval/{result['split']}/{result['budget']:g}"
        scores = {f"eval_{name}": value for name, value in result["metrics"].items()}
        values = {f"eval_{name}": result[name] for name in logged}
        tracker.log(
            last.first_step + last.num_steps,
            {"phase": phase, "budget": result["budget"], **scores, **values},
        )
