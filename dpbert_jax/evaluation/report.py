"""What `eval.py` does: scores a run at the budgets asked, beside the dense model, with a table."""

import dataclasses
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpbert_jax import hosts
from dpbert_jax.config_file import write_config
from dpbert_jax.data import TaskData, tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.answers import write_answers
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.calibration import calibrate
from dpbert_jax.evaluation.evaluate import evaluation_figures
from dpbert_jax.evaluation.metrics import compute_metrics, score
from dpbert_jax.evaluation.plots import plot_layers_per_input, plot_score_against_cost
from dpbert_jax.evaluation.runner import compute_dtype, make_runner
from dpbert_jax.evaluation.table import Result, print_table, write_json
from dpbert_jax.evaluation.task import load_task_of, with_run_defaults
from dpbert_jax.evaluation.token_dial import measured_dial
from dpbert_jax.inference import Rule, resolve_rule
from dpbert_jax.integrity import update_sums
from dpbert_jax.model import Model
from dpbert_jax.policies.cost import cost_unit, mean_cost
from dpbert_jax.policies.rule import check_budget
from dpbert_jax.run_folder import BASELINES, TEACHER

logger = logging.getLogger(__name__)


def evaluate_run(args: EvalArguments) -> list[Result]:
    """What `eval.py` was asked: thresholds anew, answers to a file's rows, scores and their table.

    Where answers were asked, or thresholds on rows without labels, nothing is scored.
    """
    model = Model.from_pretrained(args.model_name_or_path, dtype=compute_dtype(args.bf16))
    for budget in args.budget:
        if not (args.calibrate and model.config.dial):  # whose range is about to be found
            check_budget(model.config, budget)
    assert model.folder is not None
    teacher, run = None, model.folder
    if model.config.token_selectors and run.parent.name == BASELINES:
        run = run.parent.parent
    if (run / TEACHER).is_dir():
        teacher = Model.from_pretrained(run / TEACHER, dtype=model.dtype)
    if args.calibrate and model.config.planner is None:
        raise UserError(f"--calibrate: {model.folder} has no planner, and so no thresholds.")
    if args.calibrate:
        model = _calibrated(model, args, model.folder)
    if args.predict_file:
        write_answers(args, model)
    return evaluate(model, teacher, args) if args.do_eval or not args.predict_file else []


def evaluate(
    model: Model,
    teacher: Model | None,
    args: EvalArguments,
    length_buckets: Sequence[int] | None = None,
) -> list[Result]:
    """Scores, prints the table, writes what was asked; one result for each split and budget.

    The model is held against its teacher, or, where it has none, against its own full depth. With
    several processes each takes its part of the rows, all have the results, the first prints.
    `length_buckets` as in `predict`.
    """
    folder, config = model.folder, model.config
    assert folder is not None  # of the run, whose data this is, unless flags name other
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
    run = make_runner(args, model, length_buckets)
    run_dense = make_runner(args, teacher, length_buckets) if teacher else run
    if (config.planner or config.token_selectors) and teacher is None:
        logger.info("%s has no %s/: its own full path stands for dense.", folder, TEACHER)

    results, plans = [], {}
    for name in task.spec.validation_splits:
        examples = task.splits[name].head(args.max_eval_samples)
        split = tokenize(examples, model.tokenizer, run.max_seq_length)
        assert split.labels is not None
        dense = run_dense(Rule(1.0, -np.inf, config.num_gates, -np.inf), split, f"{name} dense")
        dense_metrics = compute_metrics(task.spec, dense.logits, split.labels)
        for rule in rules:
            made = run(rule, split, f"{name} {rule.budget:g}")
            plans[rule.budget] = made.layer_mask
            spent = mean_cost(config, made.cost, split.lengths)
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
                    **evaluation_figures(made, spent, task.spec, split.labels, dense_metrics),
                    "dense_seconds": dense.seconds,
                    "cost_unit": cost_unit(config),
                    "thresholds_from": config.calibration.inputs if config.calibration else None,
                    "dense_model": "teacher" if teacher else "self",
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


def _calibrated(model: Model, args: EvalArguments, folder: Path) -> Model:
    """With thresholds found on the inputs of a split; they are written to the run's folder too."""
    args, config = with_run_defaults(args, folder), model.config
    length = args.max_seq_length or model.max_seq_length
    task = load_task_of(args, config, labels="optional")
    if args.calibrate not in task.splits:
        raise UserError(
            f"--calibrate {args.calibrate}: this data has the splits {sorted(task.splits)}."
        )
    split = tokenize(task.splits[args.calibrate], model.tokenizer, length)
    inputs = f"{task.spec.name} {args.calibrate}"
    if config.dial:
        sized = dataclasses.replace(model, max_seq_length=length)
        calibration = measured_dial(sized, split, inputs)
    else:
        calibration = calibrate(
            config,
            model.params,
            split,
            inputs=inputs,
            batch_size=32,
            max_seq_length=length,
            dtype=model.dtype,
        )
    config = dataclasses.replace(config, calibration=calibration)
    for budget in args.budget:
        check_budget(config, budget)
    write_config(config, folder)
    update_sums(folder, ["config.json"])
    logger.info("Thresholds from the split '%s' are in %s/config.json.", args.calibrate, folder)
    return dataclasses.replace(model, config=config)


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
