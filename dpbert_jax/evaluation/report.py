"""What `eval.py` does: scores a run at the budgets asked, beside the dense model, with a table."""

import dataclasses
import json
import logging
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpbert_jax import hosts
from dpbert_jax.config import DPBertConfig, write_config
from dpbert_jax.convert import load_run
from dpbert_jax.data import TaskData, TokenizedSplit, tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.calibration import calibrate
from dpbert_jax.evaluation.evaluate import Predictions, predict, summarise
from dpbert_jax.evaluation.metrics import compute_metrics, score
from dpbert_jax.evaluation.plots import plot_layers_per_input, plot_score_against_cost
from dpbert_jax.evaluation.task import load_task_of, with_run_defaults
from dpbert_jax.inference import AUTO, Rule, make_executor, pick_executor, resolve_rule
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.inference.rules import check_budget
from dpbert_jax.integrity import update_sums
from dpbert_jax.model import Params
from dpbert_jax.run_folder import TEACHER

logger = logging.getLogger(__name__)

Result = dict[str, Any]

BATCH_SIZES = {"cond": 1, "masked": 32, "chunked": 32, "packed": CHUNK_ROWS}


class Subject(NamedTuple):
    """A model and the dense one that it is held against, where there is one."""

    folder: Path
    config: DPBertConfig
    params: Params
    tokenizer: Any
    dense_config: DPBertConfig | None
    dense_params: Params | None


def evaluate_run(args: EvalArguments) -> list[Result]:
    """Evaluates a folder, prints the table, writes what was asked: see `evaluate`."""
    folder, config, params, tokenizer = load_run(args.model_name_or_path)
    dense_config = dense_params = None
    if (folder / TEACHER).is_dir():
        _, dense_config, dense_params, _ = load_run(str(folder / TEACHER))
    return evaluate(Subject(folder, config, params, tokenizer, dense_config, dense_params), args)


def evaluate(subject: Subject, args: EvalArguments) -> list[Result]:
    """Evaluates, prints the table, writes what was asked; one result for each split and budget.

    With several processes each takes its part of the rows, all have the results, the first prints.
    """
    folder, config, params, tokenizer = subject[:4]
    for budget in args.budget:
        check_budget(config, budget)
    if args.calibrate and config.planner is None:
        raise UserError(f"--calibrate: {folder} has no planner, and so no thresholds.")
    args = with_run_defaults(args, folder)
    task = load_task_of(args, config)
    if args.calibrate:
        config = _calibrated(args, folder, config, params, task, tokenizer)
    rules = [resolve_rule(config, budget, args.plan_rule) for budget in args.budget]
    if args.executor == AUTO:
        args = dataclasses.replace(args, executor=pick_executor(args.per_device_eval_batch_size))
    batch_size = args.per_device_eval_batch_size or BATCH_SIZES.get(args.executor, 1)

    run = _runner(args, config, params, batch_size)
    if subject.dense_config and subject.dense_params:
        run_dense = _runner(args, subject.dense_config, subject.dense_params, batch_size)
        dense_model = "teacher"
    else:
        run_dense, dense_model = run, "self"
        if config.planner:
            logger.info("%s has no %s/: its own full path stands for dense.", folder, TEACHER)

    results, plans = [], {}
    for name in task.spec.validation_splits:
        examples = task.splits[name].head(args.max_eval_samples)
        split = tokenize(examples, tokenizer, args.max_seq_length or 128)
        if split.labels is None:
            raise UserError(f"The split '{name}' has no labels to score against.")
        dense = run_dense(Rule(1.0, float("-inf"), config.num_gates), split, f"{name} dense")
        dense_metrics = compute_metrics(task.spec, dense.logits, split.labels)
        for rule in rules:
            made = run(rule, split, f"{name} {rule.budget:g}")
            plans[rule.budget] = made.layer_mask
            results.append(
                {
                    "model": str(folder),
                    "task": task.spec.name,
                    "split": name,
                    "examples": len(split),
                    "skipped_rows": len(task.skipped.get(name, [])),
                    "budget": rule.budget,
                    "plan_rule": args.plan_rule,
                    "executor": args.executor,
                    "batch_size": batch_size,
                    **summarise(made, task.spec, split.labels, dense_metrics),
                    "dense_seconds": dense.seconds,
                    "dense_model": dense_model,
                    "versions": {name: version(name) for name in ("jax", "flax", "numpy")},
                    "device": jax.devices()[0].device_kind,
                }
            )
        if args.plot_dir:
            _plot(Path(args.plot_dir), task, name, results, plans)
    if hosts.is_main():
        _print_table(results)
    if args.json:
        _write_json(Path(args.json), results)
    return results


def _calibrated(
    args: EvalArguments,
    folder: Path,
    config: DPBertConfig,
    params: Params,
    task: TaskData,
    tokenizer: Any,
) -> DPBertConfig:
    """The config with thresholds found on the inputs of a split, written to the run's folder."""
    if args.calibrate not in task.splits:
        raise UserError(
            f"--calibrate {args.calibrate}: this data has the splits {sorted(task.splits)}."
        )
    length = args.max_seq_length or 128
    calibration = calibrate(
        config,
        params,
        tokenize(task.splits[args.calibrate], tokenizer, length),
        inputs=f"{task.spec.name} {args.calibrate}",
        batch_size=32,
        max_seq_length=length,
        dtype=jnp.bfloat16 if args.bf16 else jnp.float32,
    )
    config = dataclasses.replace(config, calibration=calibration)
    write_config(config, folder)
    update_sums(folder, ["config.json"])
    logger.info("Thresholds from the split '%s' are in %s/config.json.", args.calibrate, folder)
    return config


def _runner(
    args: EvalArguments, config: DPBertConfig, params: Params, batch_size: int
) -> Callable[[Rule, TokenizedSplit, str], Predictions]:
    execute = make_executor(
        args.executor,
        config,
        params,
        jnp.bfloat16 if args.bf16 else jnp.float32,
        chunk_size=args.chunk_size,
    )

    def run(rule: Rule, split: TokenizedSplit, progress: str) -> Predictions:
        return predict(
            execute,
            rule,
            config,
            split,
            batch_size=batch_size,
            max_seq_length=args.max_seq_length or 128,
            progress=progress,
        )

    return run


def _plot(folder: Path, task: TaskData, split: str, results: list[Result], plans: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mine = [result for result in results if result["split"] == split]
    suffix = "" if len(task.spec.validation_splits) == 1 else f"_{split}"
    title = f"{task.spec.name} {split} ({mine[0]['examples']} inputs)"
    points = [(result["cost"], result["score"]) for result in mine]
    metric = " and ".join(task.spec.metrics)
    dense = score(mine[0]["dense_metrics"])
    plot_score_against_cost(
        folder / f"score_against_cost{suffix}.png", points, dense, title, metric
    )
    plot_layers_per_input(folder / f"layers_per_input{suffix}.png", plans, title)
    logger.info("Plots are in %s.", folder)


def _print_table(results: list[Result]) -> None:
    first = results[0]
    rule, executor = first["plan_rule"], first["executor"]
    skips = executor != "masked"
    note = "" if skips else " (it computes all layers: its time says nothing)"
    print(
        f"\n{first['model']}: {first['task']}, rule {rule}, executor {executor} at batch "
        f"{first['batch_size']}{note}\n"
        f"jax {first['versions']['jax']}, Python {platform.python_version()}, {first['device']}\n"
    )
    names = list(first["metrics"])
    head = ["split", "budget", *names, "kept", "layers", "cost", "plans", "time"]
    rows = []
    for split in dict.fromkeys(result["split"] for result in results):
        mine = [result for result in results if result["split"] == split]
        dense, layers = mine[0]["dense_metrics"], mine[0]["num_layers"]
        scores = [f"{dense[name]:.4f}" for name in names]
        all_layers = f"{layers}/{layers}"
        rows.append(
            [
                split,
                "dense",
                *scores,
                "100.0 %",
                all_layers,
                "1.000",
                "1",
                "100 %" if skips else "-",
            ]
        )
        for result in mine:
            rows.append(
                [
                    split,
                    f"{result['budget']:g}",
                    *(f"{result['metrics'][name]:.4f}" for name in names),
                    f"{100 * result['score_kept']:.1f} %",
                    f"{result['mean_layers']:.2f}/{layers}",
                    f"{result['cost']:.3f}",
                    str(result["distinct_plans"]),
                    f"{100 * result['seconds'] / result['dense_seconds']:.0f} %" if skips else "-",
                ]
            )
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def without_nan(value: Any) -> Any:
    """The same for JSON, which has no NaN: null in its place."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _write_json(path: Path, results: list[Result]) -> None:
    cleaned = without_nan(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(cleaned if len(cleaned) > 1 else cleaned[0], indent=2)
    path.write_text(text + "\n", encoding="utf-8")
