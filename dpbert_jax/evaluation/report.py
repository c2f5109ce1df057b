"""What `eval.py` does: scores a run at the budgets asked, beside the dense model, with a table."""

import dataclasses
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dpbert_jax import hosts
from dpbert_jax.config import DPBertConfig, write_config
from dpbert_jax.data import TaskData, tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.answers import write_answers
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.calibration import calibrate
from dpbert_jax.evaluation.evaluate import summarise
from dpbert_jax.evaluation.metrics import compute_metrics, score
from dpbert_jax.evaluation.plots import plot_layers_per_input, plot_score_against_cost
from dpbert_jax.evaluation.runner import compute_dtype, make_runner
from dpbert_jax.evaluation.table import Result, print_table, write_json
from dpbert_jax.evaluation.task import load_task_of, with_run_defaults
from dpbert_jax.hub import load_run
from dpbert_jax.inference import Rule, resolve_rule
from dpbert_jax.integrity import update_sums
from dpbert_jax.policies.dpbert import Params
from dpbert_jax.policies.rule import check_budget
from dpbert_jax.run_folder import TEACHER

logger = logging.getLogger(__name__)


class Subject(NamedTuple):
    """A model and the dense one that it is held against, where there is one."""

    folder: Path
    config: DPBertConfig
    params: Params
    tokenizer: Any
    dense_config: DPBertConfig | None
    dense_params: Params | None


def evaluate_run(args: EvalArguments) -> list[Result]:
    """What `eval.py` was asked: thresholds anew, answers to a file's rows, scores and their table.

    Where answers were asked, or thresholds on rows without labels, nothing is scored.
    """
    folder, config, params, tokenizer = load_run(args.model_name_or_path)
    for budget in args.budget:
        check_budget(config, budget)
    dense_config = dense_params = None
    if (folder / TEACHER).is_dir():
        _, dense_config, dense_params, _ = load_run(str(folder / TEACHER))
    subject = Subject(folder, config, params, tokenizer, dense_config, dense_params)
    if args.calibrate and config.planner is None:
        raise UserError(f"--calibrate: {folder} has no planner, and so no thresholds.")
    if args.calibrate:
        subject = _calibrated(subject, with_run_defaults(args, folder))
    if args.predict_file:
        write_answers(args, *subject[:4])
    return evaluate(subject, args) if args.do_eval or not args.predict_file else []


def evaluate(subject: Subject, args: EvalArguments) -> list[Result]:
    """Scores, prints the table, writes what was asked; one result for each split and budget.

    With several processes each takes its part of the rows, all have the results, the first prints.
    """
    folder, config, params, tokenizer = subject[:4]
    args = with_run_defaults(args, folder)
    task = load_task_of(args, config, labels="optional")
    unlabelled = [name for name in task.spec.validation_splits if task.splits[name].labels is None]
    if unlabelled and args.calibrate:
        logger.info("The rows of %s have no labels: nothing is scored.", unlabelled[0])
        return []
    if unlabelled:
        raise UserError(
            f"The rows of '{unlabelled[0]}' have no labels to score against. For the model's "
            "answers to them give the file as --predict_file."
        )
    rules = [resolve_rule(config, budget, args.plan_rule) for budget in args.budget]
    run = make_runner(args, config, params)
    if subject.dense_config and subject.dense_params:
        run_dense = make_runner(args, subject.dense_config, subject.dense_params)
        dense_model = "teacher"
    else:
        run_dense, dense_model = run, "self"
        if config.planner:
            logger.info("%s has no %s/: its own full path stands for dense.", folder, TEACHER)

    results, plans = [], {}
    for name in task.spec.validation_splits:
        examples = task.splits[name].head(args.max_eval_samples)
        split = tokenize(examples, tokenizer, args.max_seq_length or 128)
        assert split.labels is not None
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
                    "executor": run.executor,
                    "batch_size": run.batch_size,
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
        print_table(results)
    if args.json:
        write_json(Path(args.json), results)
    return results


def _calibrated(subject: Subject, args: EvalArguments) -> Subject:
    """With thresholds found on the inputs of a split; they are written to the run's folder too."""
    folder, config = subject.folder, subject.config
    task = load_task_of(args, config, labels="optional")
    if args.calibrate not in task.splits:
        raise UserError(
            f"--calibrate {args.calibrate}: this data has the splits {sorted(task.splits)}."
        )
    length = args.max_seq_length or 128
    calibration = calibrate(
        config,
        subject.params,
        tokenize(task.splits[args.calibrate], subject.tokenizer, length),
        inputs=f"{task.spec.name} {args.calibrate}",
        batch_size=32,
        max_seq_length=length,
        dtype=compute_dtype(args),
    )
    config = dataclasses.replace(config, calibration=calibration)
    write_config(config, folder)
    update_sums(folder, ["config.json"])
    logger.info("Thresholds from the split '%s' are in %s/config.json.", args.calibrate, folder)
    return subject._replace(config=config)


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
