"""How an evaluation's results are shown: as a table for people, as JSON for machines."""

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpbert_jax.evaluation.metrics import percent
from dpbert_jax.policies.cost import COST_UNITS

Result = dict[str, Any]

# With fewer rows than these the executor runs for so short a time that noise decides.
TIMED_ROWS = 128


def metric_titles(names: Iterable[str], f1_class: str | None) -> list[str]:
    """Metrics as headings; F1 with the class that it is of."""
    return [f"f1 ({f1_class})" if name == "f1" and f1_class else name for name in names]


def print_table(results: list[Result]) -> None:
    """The dense model and each budget, a line each, split after split."""
    first = results[0]
    skips, few = first["executor"] != "masked", first["examples"] < TIMED_ROWS
    note = "" if skips else " (it computes all layers: its time says nothing)"
    if skips and few:
        note = f"; time: too few rows, {TIMED_ROWS} or more tell something"
    print(
        f"\n{first['model']}: {first['task']}, rule {first['plan_rule']}, executor "
        f"{first['executor']} at batch {first['batch_size']}{note}\n"
        f"jax {first['versions']['jax']}, Python {platform.python_version()}, {first['device']}\n"
        f"cost, of the dense FLOPs: {COST_UNITS[first['cost_unit']]}\n"
    )
    names = list(first["metrics"])
    titles = metric_titles(names, first["f1_class"])
    head = ["split", "budget", *titles, "kept", "layers", "cost", "plans", "time"]
    rows = []
    for split in dict.fromkeys(result["split"] for result in results):
        mine = [result for result in results if result["split"] == split]
        dense, layers = mine[0]["dense_metrics"], mine[0]["num_layers"]
        scores = [f"{dense[name]:.4f}" for name in names]
        time = "100 %" if skips and not few else "-"
        rows.append([split, "dense", *scores, "100.0 %", f"{layers}/{layers}", "1.000", "1", time])
        for result in mine:
            share = result["seconds"] / result["dense_seconds"]
            rows.append(
                [
                    split,
                    f"{result['budget']:g}",
                    *(f"{result['metrics'][name]:.4f}" for name in names),
                    percent(result["score_kept"]),
                    f"{result['mean_layers']:.2f}/{layers}",
                    f"{result['cost']:.3f}",
                    str(result["distinct_plans"]),
                    f"{100 * share:.0f} %" if skips and not few else "-",
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


def write_json(path: Path, results: list[Result]) -> None:
    """An object, or a list of them where there are several."""
    cleaned = without_nan(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(cleaned if len(cleaned) > 1 else cleaned[0], indent=2)
    path.write_text(text + "\n", encoding="utf-8")
