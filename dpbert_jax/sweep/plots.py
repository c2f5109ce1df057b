"""The curve: score against cost, planned points beside their controls."""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # files only: works without a display

from matplotlib import pyplot as plt

from dpbert_jax.sweep.points import Point

# Learned plans in strong colours, controls muted; the same everywhere.
STYLES: dict[str, dict[str, Any]] = {
    "threshold": {"color": "tab:blue", "marker": "o", "linewidth": 2.2, "zorder": 5},
    "top_k": {"color": "tab:cyan", "marker": "^", "linewidth": 1.5, "zorder": 4},
    "shuffled": {"color": "tab:orange", "marker": "v"},
    "mix": {"color": "tab:green", "marker": "s"},
    "random": {"color": "tab:red", "marker": "x"},
    "static": {"color": "black", "marker": "D", "linestyle": "none"},
    "deebert": {"color": "tab:purple", "marker": "P", "linestyle": "--"},
    "pabee": {"color": "tab:brown", "marker": "*", "linestyle": "--"},
}
LABELS = {
    "threshold": "learned, threshold",
    "top_k": "learned, top_k",
    "shuffled": "its plans shuffled",
    "mix": "best mix of two plans",
    "random": "random plans",
    "static": "static, fine-tuned",
    "deebert": "DeeBERT",
    "pabee": "PABEE",
}


def pareto_front(points: list[Point]) -> list[tuple[float, float]]:
    """(cost, score) of the points that none is both cheaper and better than, cheapest first.

    A point without a score (NaN) is on no front.
    """
    front: list[tuple[float, float]] = []
    for cost, score in sorted(
        ((p["cost"], p["score"]) for p in points), key=lambda pair: (pair[0], -pair[1])
    ):
        if score > (front[-1][1] if front else -math.inf):
            front.append((cost, score))
    return front


def plot_curve(
    path: Path, points: list[Point], dense_score: float, title: str, metric: str
) -> None:
    """Every variant's scores against their measured mean costs, and the Pareto front."""
    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    front = pareto_front([*points, {"cost": 1.0, "score": dense_score}])
    axes.step(
        *zip(*front, strict=True),
        where="post",
        color="gold",
        linewidth=5,
        alpha=0.6,
        label="Pareto front",
        zorder=0,
    )
    for variant, style in STYLES.items():
        mine = sorted((p for p in points if p["variant"] == variant), key=lambda p: p["cost"])
        if mine:
            axes.errorbar(
                [p["cost"] for p in mine],
                [p["score"] for p in mine],
                yerr=[p["score_deviation"] or 0.0 for p in mine],
                label=LABELS[variant],
                capsize=2,
                **style,
            )
    axes.plot([1.0], [dense_score], "s", color="tab:gray", markersize=9, label="dense BERT")
    axes.axhline(0.99 * dense_score, color="tab:gray", linestyle=":", label="99 % of dense")
    axes.set(xlabel="cost: share of the dense FLOPs, planner included", ylabel=metric, title=title)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=140)
    plt.close(figure)
