"""The curve: score against cost, planned points beside their controls."""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # files only: works without a display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dpbert_jax.study.scorer import Point

CLOSE = 0.93  # share of the dense score that the second panel begins at

# Learned plans in strong colours, controls muted; the same everywhere.
STYLES: dict[str, dict[str, Any]] = {
    "threshold": {"color": "tab:blue", "marker": "o", "linewidth": 2.2, "zorder": 5},
    "top_k": {"color": "tab:cyan", "marker": "^", "linewidth": 1.5, "zorder": 4},
    "shuffled": {"color": "tab:orange", "marker": "v"},
    "mix": {"color": "tab:green", "marker": "s"},
    "length": {"color": "tab:olive", "marker": "p"},
    "random": {"color": "tab:red", "marker": "x"},
    "static": {"color": "black", "marker": "D", "linestyle": "none"},
    "bank": {"color": "black", "marker": ".", "linestyle": ":"},
    "deebert": {"color": "tab:purple", "marker": "P", "linestyle": "--"},
    "pabee": {"color": "tab:brown", "marker": "*", "linestyle": "--"},
    "dact": {"color": "tab:pink", "marker": "h", "linestyle": "--"},
    "smartbert": {"color": "tab:gray", "marker": "X", "linestyle": "--"},
    "trbert": {"color": "goldenrod", "marker": "<", "linestyle": "--"},
    "trbert_random": {"color": "goldenrod", "marker": "x", "linestyle": "none"},
    "trbert_importance": {"color": "goldenrod", "marker": "+", "linestyle": "none"},
    "planned_trbert": {"color": "navy", "marker": ">", "linestyle": "-."},
    "planned_trbert_random": {"color": "navy", "marker": "x", "linestyle": ":"},
    "planned_trbert_importance": {"color": "navy", "marker": "+", "linestyle": ":"},
}
LABELS = {
    "threshold": "learned, threshold",
    "top_k": "learned, top_k",
    "shuffled": "its plans shuffled",
    "mix": "best mix of two plans",
    "length": "best plans by length alone",
    "random": "random plans",
    "static": "static, fine-tuned",
    "bank": "bank of static models",
    "deebert": "DeeBERT",
    "pabee": "PABEE",
    "dact": "DACT-BERT",
    "smartbert": "SmartBERT's gates",
    "trbert": "TR-BERT",
    "trbert_random": "TR-BERT, random tokens",
    "trbert_importance": "TR-BERT, tokens by gradient",
    "planned_trbert": "learned, and TR-BERT",
    "planned_trbert_random": "the same, random tokens",
    "planned_trbert_importance": "the same, tokens by gradient",
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
    """Every variant's scores against their measured mean costs, and the Pareto front of all.

    The second panel is the first one's upper end: far off controls leave the others too close to
    tell apart.
    """
    figure, (whole, close) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    for axes in (whole, close):
        _draw(axes, points, dense_score)
        axes.set(xlabel="cost: share of the dense FLOPs, planner included", ylabel=metric)
    whole.legend(fontsize=8)
    top = max([dense_score, *(p["score"] for p in points if not math.isnan(p["score"]))])
    if dense_score > 0:
        close.set_ylim(CLOSE * dense_score, top + 0.05 * (top - CLOSE * dense_score))
    close.set_title(f"from {CLOSE:.0%} of the dense score on", fontsize=10)
    figure.suptitle(title)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _draw(axes: Axes, points: list[Point], dense_score: float) -> None:
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
        own = sorted((p for p in points if p["variant"] == variant), key=lambda p: p["cost"])
        # A model that has points at several budgets is a line; models at a cost each are one line.
        several = any(p["budget"] is not None for p in own)
        models = dict.fromkeys(p.get("trained_at") if several else None for p in own)
        for model in models:
            mine = [p for p in own if not several or p.get("trained_at") == model]
            axes.errorbar(
                [p["cost"] for p in mine],
                [p["score"] for p in mine],
                yerr=[p["score_deviation"] or 0.0 for p in mine],
                label=" ".join(filter(None, (LABELS[variant], model))),
                capsize=2,
                **style,
            )
    axes.plot([1.0], [dense_score], "s", color="tab:gray", markersize=9, label="dense BERT")
    axes.axhline(0.99 * dense_score, color="tab:gray", linestyle=":", label="99 % of dense")
