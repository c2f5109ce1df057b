"""A whole run: dense fine-tuning, joint training with the planner, fine-tuning on final plans.

Resuming repeats the same four lines, whatever was interrupted:
1. read the newest good checkpoint: it names its stage and step;
2. skip the stages before it;
3. rebuild what the stage needs from what is on disk (teacher, thresholds), by the same programs;
4. go on with the next batch of the schedule, which follows from (seed, stage, step).
"""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpbert_jax.config import DPBertConfig, PlannerConfig, read_config
from dpbert_jax.convert import (
    load_params,
    load_run,
    load_tokenizer,
    resolve_folder,
    save_folder,
)
from dpbert_jax.data import TaskData, TokenizedSplit, load_task, num_batches, tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.calibration import calibrate
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.evaluation.report import evaluate_run
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.model import DPBert, Params, init_params
from dpbert_jax.model.cost import planner_share
from dpbert_jax.run_folder import CHECKPOINTS, TEACHER
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.checkpoint import Checkpoints, Position
from dpbert_jax.training.loop import StagePlan, run_stage
from dpbert_jax.training.objective import StageName
from dpbert_jax.training.optimizer import make_optimizer
from dpbert_jax.training.output import open_output
from dpbert_jax.training.step import TrainState, create_state, make_train_step
from dpbert_jax.training.tracker import Tracker, make_tracker

logger = logging.getLogger(__name__)

REPORTED_BUDGETS = (1.0, 0.75, 0.6)
STAGES: tuple[StageName, ...] = ("dense", "joint", "final")


class Rows(NamedTuple):
    """The training rows: all for the dense stage, without the calibration rows afterwards."""

    every: TokenizedSplit
    kept: TokenizedSplit
    kept_numbers: np.ndarray  # where the kept rows stand among all
    calibration: TokenizedSplit


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
    config = dataclasses.replace(
        dense_config, planner=PlannerConfig(args.stem_layers, min_budget=args.min_budget)
    )
    _check_budget_range(config, args)
    # All that can be refused is looked at before the output folder is claimed.
    tokenizer = load_tokenizer(source)
    fresh = () if args.teacher else ("classifier", "bert.pooler")
    source_params = load_params(source, dense_config, fresh=fresh, seed=args.seed)
    folder = open_output(args)
    rows = _training_rows(task, tokenizer, args)
    plans = _plan_stages(rows, args)

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
                state = create_state(params, _optimizer(params, stage_config, plan, args))
            assert state is not None
            params = _train_stage(
                plan, state, stage_config, rows, folder, tracker, checkpoints, args
            )
        final_config = _calibrated(config, params, rows, args)
        save_folder(folder, final_config, params, tokenizer)
        _report(folder, tracker, plans[-1], args)
    finally:
        checkpoints.close()
        tracker.close()


def _dtype(args: TrainArguments) -> Any:
    return jnp.bfloat16 if args.bf16 else jnp.float32


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


def _check_budget_range(config: DPBertConfig, args: TrainArguments) -> None:
    lowest = args.stem_layers / config.bert.num_hidden_layers + planner_share(config, 16)
    if args.min_budget <= lowest:
        raise UserError(
            f"--min_budget is {args.min_budget}, but the stem ({args.stem_layers} layers) and the "
            f"planner alone cost {lowest:.3f}: ask for more, or for a shallower stem."
        )


def _training_rows(task: TaskData, tokenizer: Any, args: TrainArguments) -> Rows:
    """Tokenises the training split and sets rows aside for calibration."""
    examples = task.splits["train"].head(args.max_train_samples)
    if len(examples) < 2:
        raise UserError(f"There are {len(examples)} training rows; at least 2 are needed.")
    every = tokenize(examples, tokenizer, args.max_seq_length)
    held_out = max(min(32, len(every) // 2), min(1000, len(every) // 20))
    order = np.random.default_rng(args.seed).permutation(len(every))
    kept, calibration = np.sort(order[held_out:]), np.sort(order[:held_out])
    return Rows(every, every.take(kept), kept, every.take(calibration))


def _batch_size(args: TrainArguments) -> int:
    devices = jax.local_device_count()
    return args.per_device_train_batch_size * devices * args.gradient_accumulation_steps


def _plan_stages(rows: Rows, args: TrainArguments) -> list[StagePlan]:
    plans: list[StagePlan] = []
    for name in STAGES:
        if name == "dense" and args.teacher:
            continue
        split = rows.every if name == "dense" else rows.kept
        epochs = args.num_train_epochs if name == "dense" else args.num_planner_epochs
        steps = math.ceil(epochs * num_batches(len(split), _batch_size(args)))
        first = plans[-1].first_step + plans[-1].num_steps if plans else 0
        plans.append(StagePlan(name, len(plans), first, steps))
    return plans


def _optimizer(params: Params, config: DPBertConfig, plan: StagePlan, args: TrainArguments) -> Any:
    return make_optimizer(
        params,
        config,
        plan.name,
        num_steps=plan.num_steps,
        learning_rate=args.learning_rate,
        planner_learning_rate=args.planner_learning_rate,
        weight_decay=args.weight_decay,
        warmup_ratio=args.warmup_ratio,
        max_grad_norm=args.max_grad_norm,
    )


def _abstract_state(plan: StagePlan, config: DPBertConfig, args: TrainArguments) -> TrainState:
    """Shapes and types of a stage's state, for restoring."""

    def make() -> TrainState:
        params = init_params(config, args.seed)
        return create_state(params, _optimizer(params, config, plan, args))

    return jax.eval_shape(make)


def _calibrated(
    config: DPBertConfig, params: Params, rows: Rows, args: TrainArguments
) -> DPBertConfig:
    calibration = calibrate(
        config,
        params,
        rows.calibration,
        batch_size=args.per_device_eval_batch_size,
        max_seq_length=args.max_seq_length,
        dtype=_dtype(args),
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
    split, numbers, teacher_logits = rows.every, np.arange(len(rows.every)), None
    if plan.name != "dense":
        split, numbers = rows.kept, rows.kept_numbers
        _, dense_config, dense_params, _ = load_run(str(folder / TEACHER))
        teacher_logits = predict(
            make_executor("masked", dense_config, dense_params, _dtype(args)),
            resolve_rule(dense_config, 1.0),
            dense_config,
            split,
            batch_size=args.per_device_eval_batch_size,
            max_seq_length=args.max_seq_length,
            progress="teacher",
        ).logits

    def save(stage_step: int, state: TrainState) -> None:
        checkpoints.save(plan.first_step + stage_step, Position(plan.index, stage_step), state)

    # Stages draw from streams of their own.
    seed = args.seed * len(STAGES) + STAGES.index(plan.name)
    step = make_train_step(
        plan.name,
        DPBert(config, _dtype(args)),
        _optimizer(state.params, config, plan, args),
        num_steps=plan.num_steps,
        accumulation=args.gradient_accumulation_steps,
        seed=seed,
    )
    state = run_stage(
        plan,
        step,
        state,
        split,
        teacher_logits,
        row_numbers=numbers,
        batch_size=_batch_size(args),
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


def _report(folder: Path, tracker: Tracker, last: StagePlan, args: TrainArguments) -> None:
    """Scores the run as it was saved; `eval.py` with `cond` does it with layers skipped."""
    results = evaluate_run(
        EvalArguments(
            model_name_or_path=str(folder),
            budget=[budget for budget in REPORTED_BUDGETS if budget >= args.min_budget],
            executor="masked",
            max_eval_samples=args.max_eval_samples,
            per_device_eval_batch_size=args.per_device_eval_batch_size,
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
