"""Scores a run over budgets and plan rules, beside controls at the same cost.

Writes sweep.csv, sweep.json, the curve, and which layers run for inputs of which difficulty.
"""

import csv
import json
import logging
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from dpbert_jax.data import tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.metrics import percent, score
from dpbert_jax.evaluation.plots import plot_layers_by_difficulty
from dpbert_jax.evaluation.table import metric_titles, without_nan
from dpbert_jax.flags import parse
from dpbert_jax.policies.cost import COST_UNITS, cost_unit
from dpbert_jax.policies.rule import check_budget
from dpbert_jax.study.bank import bank_points
from dpbert_jax.study.curve import plot_curve
from dpbert_jax.study.fit import open_run
from dpbert_jax.study.insight import difficulty, insight
from dpbert_jax.study.points import plan_controls, planned_points
from dpbert_jax.study.scorer import Point, open_scorer
from dpbert_jax.study.sweep_arguments import SweepArguments
from dpbert_jax.study.timing import time_points
from dpbert_jax.study.token_controls import token_points
from dpbert_jax.study.trained_points import check_trained, trained_controls

logger = logging.getLogger(__name__)
COLUMNS = (
    "split",
    "variant",
    "trained_at",
    "budget",
    "score",
    "score_deviation",
    "score_kept",
    "agreement",
    "mean_layers",
    "cost",
    "distinct_plans",
    "latency_ms",
    "latency_share",
    "latency_cost",
    "samples_per_second",
    "throughput_gain",
)


def sweep(args: SweepArguments) -> dict[str, Any]:
    """Measures, prints, writes; returns what `sweep.json` holds."""
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder} cannot be written: {error.strerror}.") from error
    run = open_run(args.model_name_or_path)
    check_trained(args, run.folder)
    config = run.model.config
    for budget in args.shares():
        check_budget(config, budget)
    report: dict[str, Any] = {
        "model": str(run.folder),
        "task": run.task.spec.name,
        "seed": run.args.seed,
        "cost_unit": cost_unit(config),
        "thresholds_from": run.model.config.calibration.inputs
        if run.model.config.calibration
        else None,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "flax", "numpy")},
        "splits": {},
        "points": [],
    }
    for name in run.task.spec.validation_splits:
        examples = run.task.splits[name].head(args.max_eval_samples)
        split = tokenize(examples, run.model.tokenizer, run.args.max_seq_length)
        scorer = open_scorer(run, split)
        learned, planned = planned_points(args, scorer)
        trained = trained_controls(args, scorer, planned)
        if args.repeats:
            time_points(args, scorer, [*learned, *trained])
        dense_metrics = scorer.metrics(scorer.dense.logits)
        report["splits"][name] = {
            "examples": len(split),
            "dense_metrics": dense_metrics,
            "f1_class": run.task.spec.f1_class,
            "insight": {
                f"{budget:g}": insight(
                    made.layer_mask, split, scorer.dense.logits, run.model.config.encoder
                )
                for budget, made in planned.items()
            },
        }
        of_run, of_models = ([variant.point for variant in group] for group in (learned, trained))
        points: list[Point] = []
        for more in (
            lambda made=of_run: made,
            partial(plan_controls, args, scorer, planned),
            lambda made=of_models: made,
            partial(bank_points, args, scorer, planned),
            partial(token_points, args, scorer, planned),
        ):
            found = more()
            points += found
            report["points"] += [{"split": name, **point} for point in found]
            _write(folder, report)  # what is measured is kept, whatever comes of the rest
        suffix = "" if len(run.task.spec.validation_splits) == 1 else f"_{name}"
        title = (
            f"{run.task.spec.name} {name} ({len(split)} inputs), one checkpoint, "
            f"seed {run.args.seed}"
        )
        plot_curve(
            folder / f"curve{suffix}.png",
            points,
            score(dense_metrics),
            title,
            ("mean of " if len(dense_metrics) > 1 else "") + " and ".join(dense_metrics),
        )
        plot_layers_by_difficulty(
            folder / f"layers_by_difficulty{suffix}.png",
            {budget: made.layer_mask for budget, made in planned.items()},
            difficulty(split, scorer.dense.logits, config.encoder),
            f"the dense model's {'error' if run.task.spec.is_regression else 'uncertainty'}",
            title,
        )
    logger.info("sweep.csv, sweep.json and the plots are in %s.", folder)
    _print_table(report)
    return report


def _write(folder: Path, report: dict[str, Any]) -> None:
    text = json.dumps(without_nan(report), indent=2)
    (folder / "sweep.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(report["points"])


def _print_table(report: dict[str, Any]) -> None:
    print(f"\n{report['model']}: {report['task']}, seed {report['seed']}")
    print(f"thresholds from: {report['thresholds_from'] or 'not recorded'}")
    print(f"cost, of the dense FLOPs: {COST_UNITS[report['cost_unit']]}")
    for name, split in report["splits"].items():
        titles = metric_titles(split["dense_metrics"], split["f1_class"])
        values = split["dense_metrics"].values()
        found = ", ".join(f"{k} {v:.4f}" for k, v in zip(titles, values, strict=True))
        print(f"{name}: {split['examples']} inputs; dense: {found}")
    head = [
        "variant",
        "budget",
        "score",
        "+-",
        "kept",
        "agrees",
        "layers",
        "cost",
        "plans",
        "latency",
    ]
    rows = [_cells(point) for point in report["points"]]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print()


def _cells(point: Point) -> list[str]:
    deviation, latency = point["score_deviation"], point.get("latency_share")
    return [
        " ".join(filter(None, (point["variant"], point.get("trained_at")))),
        "-" if point["budget"] is None else f"{point['budget']:g}",
        f"{point['score']:.4f}",
        "" if deviation is None else f"{deviation:.4f}",
        percent(point["score_kept"]),
        f"{point['agreement']:.4f}",
        f"{point['mean_layers']:.2f}",
        f"{point['cost']:.3f}",
        str(point["distinct_plans"]),
        "-" if latency is None else f"{100 * latency:.0f} %",
    ]


def main() -> None:
    sweep(parse(SweepArguments, __doc__))
