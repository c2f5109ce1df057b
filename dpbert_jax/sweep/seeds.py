"""Sweeps of several seeds and tasks as Markdown tables: what is kept, leads over the controls."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpbert_jax.cli import parse, run_script
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.metrics import score, share_kept
from dpbert_jax.sweep.arguments import CONTROLS
from dpbert_jax.sweep.points import Point

NOTHING = "-"


@dataclass(frozen=True)
class SeedsArguments:
    sweep_dirs: list[str] = field(
        metadata={
            "help": "Folders that python -m dpbert_jax.sweep wrote, of any tasks and seeds; may be "
            "given first, without flag."
        }
    )


class Sweep(NamedTuple):
    """What was measured of one run on one validation split.

    `planned` is by budget, of the first plan rule: the points that the controls stand beside.
    `controls` is by name and budget, `static` (which has none of the budgets) apart.
    """

    folder: str
    seed: int
    dense: dict[str, float]
    planned: dict[float, Point]
    controls: dict[tuple[str, float], Point]
    static: list[Point]


Sweeps = dict[str, list[Sweep]]  # by task


def read_sweeps(folders: Iterable[str]) -> Sweeps:
    """The sweeps by task, in the order given; a task of two validation splits is two tasks here.

    Raises:
        UserError: a folder has no sweep, or a task's sweeps are of one seed or of other budgets.
    """
    by_task: Sweeps = {}
    for folder in folders:
        path = Path(folder) / "sweep.json"
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
            raise UserError(
                f"{path} cannot be read: {reason}. Name folders that `python -m dpbert_jax.sweep` "
                "wrote."
            ) from error
        for split, about in report["splits"].items():
            task = report["task"] if len(report["splits"]) == 1 else f"{report['task']} {split}"
            points = [_with_nan(point) for point in report["points"] if point["split"] == split]
            rule = points[0]["variant"]
            found = Sweep(
                folder,
                report["seed"],
                about["dense_metrics"],
                {p["budget"]: p for p in points if p["variant"] == rule},
                {(p["variant"], p["budget"]): p for p in points if p["variant"] in CONTROLS},
                [p for p in points if p["variant"] == "static"],
            )
            for other in by_task.setdefault(task, []):
                _check_companions(task, other, found)
            by_task[task].append(found)
    return by_task


def _with_nan(point: Point) -> Point:
    """JSON has no NaN: an undefined metric was written as null."""
    metrics = {k: math.nan if v is None else v for k, v in point["metrics"].items()}
    return {**point, "metrics": metrics, "score": score(metrics)}


def _check_companions(task: str, one: Sweep, other: Sweep) -> None:
    both = f"{one.folder} and {other.folder}"
    if one.seed == other.seed:
        raise UserError(f"{both} are both of {task}, seed {one.seed}: name one of them.")
    if one.planned.keys() != other.planned.keys():
        raise UserError(
            f"{both} are of {task} at different budgets: sweep both with the same --budgets."
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


def controls_table(sweeps: Sweeps) -> str:
    """Mean scores at the planned points' cost, and each seed's lead over a control, in points."""
    known = {name for seeds in sweeps.values() for seed in seeds for name, _ in seed.controls}
    names = [name for name in CONTROLS if name in known - {"static"}]
    rows = []
    for task, seeds in sweeps.items():
        for budget in seeds[0].planned:
            learned = [seed.planned[budget] for seed in seeds]
            scores, leads = [], []
            for name in names:
                if not all((name, budget) in seed.controls for seed in seeds):
                    scores.append(NOTHING)
                    leads.append(NOTHING)
                    continue
                control = [seed.controls[name, budget] for seed in seeds]
                scores.append(_mean_score(control))
                leads.append(", ".join(map(_lead, learned, control)))
            if set(scores) - {NOTHING}:  # at a budget of 1 every layer runs: no control of plans
                cost = f"{np.mean([point['cost'] for point in learned]):.3f}"
                head = [task, f"{budget:g}", cost, f"**{_mean_score(learned)}**"]
                rows.append([*head, *scores, *leads])
    return _markdown(
        ["task", "budget", "cost", "learned", *names, *(f"over {name}" for name in names)], rows
    )


def static_table(sweeps: Sweeps) -> str:
    """Static models, each seed's at their own cost."""
    rows = [
        [
            task,
            str(seed.seed),
            f"{point['mean_layers']:g}",
            f"{point['cost']:.3f}",
            f"{point['score']:.4f}",
            f"{_kept(seed, point):.1f}",
        ]
        for task, seeds in sweeps.items()
        for seed in seeds
        for point in seed.static
    ]
    return _markdown(["task", "seed", "layers", "cost", "score", "kept"], rows)


def _budgets(sweeps: Sweeps) -> list[float]:
    return sorted({budget for seeds in sweeps.values() for budget in seeds[0].planned})


def _kept(seed: Sweep, point: Point) -> float:
    return 100 * share_kept(point["score"], score(seed.dense))


def _mean_score(points: Sequence[Point]) -> str:
    return f"{np.mean([point['score'] for point in points]):.4f}"


def _lead(point: Point, control: Point) -> str:
    return f"{round(100 * (point['score'] - control['score']), 1) + 0.0:+.1f}"  # no -0.0


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
    }
    if any(seed.static for seeds in sweeps.values() for seed in seeds):
        tables["Static models"] = static_table(sweeps)
    for title, table in tables.items():
        print(f"\n{title}\n\n{table}")


if __name__ == "__main__":
    run_script(main)
