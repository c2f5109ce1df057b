"""Sweeps of several seeds and tasks as Markdown tables: what is kept, leads over the controls."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.metrics import score, share_kept
from dpbert_jax.flags import parse
from dpbert_jax.study.scorer import Point
from dpbert_jax.study.sweep_arguments import CONTROLS, OWN_COST

NOTHING = "-"


@dataclass(frozen=True)
class SeedsArguments:
    sweep_dirs: list[str] = field(
        metadata={
            "help": "Folders that dpbert sweep wrote, of any tasks and seeds; may be "
            "given first, without flag."
        }
    )


class Sweep(NamedTuple):
    """What was measured of one run on one validation split.

    `planned` is by budget, of the first plan rule: the points that the controls stand beside.
    `controls` is by name and budget; what has a cost of its own stands apart.
    """

    folder: str
    seed: int
    setting: dict[str, Any]  # what sweeps that are averaged must have in common
    dense: dict[str, float]
    planned: dict[float, Point]
    controls: dict[tuple[str, float], Point]
    own_cost: list[Point]


Sweeps = dict[str, list[Sweep]]  # by task


def read_sweeps(folders: Iterable[str]) -> Sweeps:
    """The sweeps by task, in the order given; a task of two validation splits is two tasks here.

    Raises:
        UserError: a folder has no sweep, or a task's sweeps are of one seed, or differ in more.
    """
    by_task: Sweeps = {}
    for folder in folders:
        path = Path(folder) / "sweep.json"
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            found = {split: _read_split(folder, report, split) for split in report["splits"]}
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}. Name folders that `dpbert sweep` wrote."
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
            raise UserError(
                f"{path} is none that `dpbert sweep` of this version wrote, or is "
                "damaged: sweep the run again."
            ) from error
        for split, sweep in found.items():
            task = report["task"] if len(found) == 1 else f"{report['task']} {split}"
            for other in by_task.setdefault(task, []):
                _check_companions(task, other, sweep)
            by_task[task].append(sweep)
    return by_task


def _read_split(folder: str, report: dict[str, Any], split: str) -> Sweep:
    about = report["splits"][split]
    points = [_with_score(point) for point in report["points"] if point["split"] == split]
    dense = _with_nan(about["dense_metrics"])
    rule = points[0]["variant"]
    planned = {p["budget"]: p for p in points if p["variant"] == rule}
    at_same_cost = set(CONTROLS) - set(OWN_COST)
    controls = [p for p in points if p["variant"] in at_same_cost]
    setting = {
        "plan rule": rule,
        "budgets": sorted(planned),
        "number of inputs": about["examples"],
        "metrics": list(dense),
        "number of layers": len(next(iter(about["insight"].values()))["layer_frequency"]),
    }
    return Sweep(
        folder,
        report["seed"],
        setting,
        dense,
        planned,
        {(p["variant"], p["budget"]): p for p in controls},
        [p for p in points if p["variant"] in OWN_COST],
    )


def _with_score(point: Point) -> Point:
    agreement = _with_nan({"agreement": point["agreement"]})
    metrics = _with_nan(point["metrics"])
    return {**point, **agreement, "metrics": metrics, "score": score(metrics)}


def _with_nan(metrics: dict[str, float | None]) -> dict[str, float]:
    """JSON has no NaN: an undefined metric was written as null."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def _check_companions(task: str, one: Sweep, other: Sweep) -> None:
    both = f"{one.folder} and {other.folder}"
    if one.seed == other.seed:
        raise UserError(f"{both} are both of {task}, seed {one.seed}: name one of them.")
    for name, value in one.setting.items():
        if value != other.setting[name]:
            raise UserError(
                f"{both} are both of {task}, but differ in their {name} ({value} and "
                f"{other.setting[name]}): there is no mean of them."
            )


def kept_table(sweeps: Sweeps) -> str:
    """The share of the dense score, in %, that each budget keeps."""
    budgets = _budgets(sweeps)
    rows = []
    for task, seeds in sweeps.items():
        dense = _over_seeds([score(seed.dense) for seed in seeds], "{:.4f}")
        kept = [
            _over_seeds([_kept(seed, seed.planned[b]) for seed in seeds], "{:.1f}")
            if b in seeds[0].planned
            else NOTHING
            for b in budgets
        ]
        rows.append([task, ", ".join(str(seed.seed) for seed in seeds), dense, *kept])
    return _markdown(["task", "seeds", "dense", *(f"{b:g}" for b in budgets)], rows)


def seed_table(sweeps: Sweeps) -> str:
    """Every seed's metrics, what they keep, and the cost that the split realised."""
    budgets = _budgets(sweeps)
    rows = []
    for task, seeds in sweeps.items():
        named = f"{task}, {' / '.join(seeds[0].dense)}"
        for seed in seeds:
            cells = [
                f"{_metrics(point['metrics'])}: {_kept(seed, point):.1f} % at {point['cost']:.3f}"
                if (point := seed.planned.get(b))
                else NOTHING
                for b in budgets
            ]
            rows.append([named, str(seed.seed), _metrics(seed.dense), *cells])
    return _markdown(["task, metrics", "seed", "dense", *(f"{b:g}" for b in budgets)], rows)


def controls_table(sweeps: Sweeps, measure: str = "score") -> str:
    """Means at the planned points' cost, and each seed's lead over a control, in points.

    A control that only some seeds have is given no mean: it would be one of other runs.

    Args:
        measure: "score", or "agreement" with the dense model's answers, whatever the labels say.
    """
    known = {name for seeds in sweeps.values() for seed in seeds for name, _ in seed.controls}
    names = [name for name in CONTROLS if name in known]
    rows = []
    for task, seeds in sweeps.items():
        for budget in seeds[0].planned:
            learned = [seed.planned[budget] for seed in seeds]
            means, leads = [], []
            for name in names:
                control = [seed.controls.get((name, budget)) for seed in seeds]
                means.append(_mean(control, measure))
                over = (_lead(*pair, measure) for pair in zip(learned, control, strict=True))
                leads.append(", ".join(over) if any(control) else NOTHING)
            if set(leads) - {NOTHING}:  # at a budget of 1 every layer runs: no control of plans
                cost = f"{np.mean([point['cost'] for point in learned]):.3f}"
                head = [task, f"{budget:g}", cost, f"**{_mean(learned, measure)}**"]
                rows.append([*head, *means, *leads])
    return _markdown(
        ["task", "budget", "cost", "learned", *names, *(f"over {name}" for name in names)], rows
    )


def own_cost_table(sweeps: Sweeps) -> str:
    """Static models and other trained methods, each seed's at their own cost."""
    rows = [
        [
            task,
            str(seed.seed),
            point["variant"],
            point.get("trained_at") or NOTHING,
            NOTHING if point["budget"] is None else f"{point['budget']:g}",
            f"{point['mean_layers']:.3g}",
            f"{point['cost']:.3f}",
            f"{point['score']:.4f}",
            f"{_kept(seed, point):.1f}",
        ]
        for task, seeds in sweeps.items()
        for seed in seeds
        for point in seed.own_cost
    ]
    return _markdown(
        ["task", "seed", "method", "trained at", "budget", "layers", "cost", "score", "kept"], rows
    )


def _budgets(sweeps: Sweeps) -> list[float]:
    return sorted({budget for seeds in sweeps.values() for budget in seeds[0].planned})


def _kept(seed: Sweep, point: Point) -> float:
    return 100 * share_kept(point["score"], score(seed.dense))


def _mean(points: Sequence[Point | None], measure: str) -> str:
    present = [point[measure] for point in points if point]
    return f"{np.mean(present):.4f}" if len(present) == len(points) else NOTHING


def _lead(point: Point, control: Point | None, measure: str) -> str:
    if not control:
        return NOTHING
    return f"{round(100 * (point[measure] - control[measure]), 1) + 0.0:+.1f}"  # no -0.0


def _over_seeds(values: Sequence[float], form: str) -> str:
    """The mean, with the standard deviation where there are several."""
    mean = form.format(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(np.std(values, ddof=1))}"


def _metrics(metrics: dict[str, float]) -> str:
    return " / ".join(f"{value:.4f}" for value in metrics.values())


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    sweeps = read_sweeps(parse(SeedsArguments, __doc__, positional="sweep_dirs").sweep_dirs)
    tables = {
        "Kept of the dense score, in %": kept_table(sweeps),
        "Each seed": seed_table(sweeps),
        "Controls at the same cost; leads in points, each seed": controls_table(sweeps),
        "Agreement with the dense model, likewise": controls_table(sweeps, "agreement"),
    }
    if any(seed.own_cost for seeds in sweeps.values() for seed in seeds):
        tables["Methods at their own cost"] = own_cost_table(sweeps)
    for title, table in tables.items():
        print(f"\n{title}\n\n{table}")
