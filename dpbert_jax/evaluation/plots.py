"""Pictures of an evaluation: score against cost, and which layers run for which inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")  # files only: works without a display

from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap


def plot_score_against_cost(
    path: Path, points: Sequence[tuple[float, float]], dense_score: float, title: str, metric: str
) -> None:
    """The curve of (cost, score) points beside the dense model and 99 % of its score."""
    ordered = sorted(points)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(*zip(*ordered, strict=True), "o-", color="tab:blue", label="planned")
    axes.plot([1.0], [dense_score], "s", color="tab:gray", label="dense BERT")
    axes.axhline(0.99 * dense_score, color="tab:gray", linestyle=":", label="99 % of dense")
    for cost, score in ordered:
        axes.annotate(
            f"{score:.3f}", (cost, score), (0, 7), textcoords="offset points", ha="center"
        )
    axes.margins(x=0.08, y=0.25)
    axes.set(xlabel="cost: share of the dense FLOPs, planner included", ylabel=metric, title=title)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panels(count: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of `count` panels side by side with one vertical axis; sizes in inches."""
    figure, panels = plt.subplots(
        1, count, figsize=(width, height), sharey=True, layout="constrained", squeeze=False
    )
    return figure, panels[0]


def plot_layers_per_input(path: Path, plans: dict[float, np.ndarray], title: str) -> None:
    """A panel for each budget: a row for every input, dark where a layer runs.

    Inputs are sorted by depth and then by plan, so that a band is a plan and its height is the
    share of inputs that take it.

    Args:
        plans: layer_mask [N, L] by budget.
    """
    figure, panels = _panels(len(plans), 2.6 * len(plans) + 1, 4.5)
    for axes, (budget, layer_mask) in zip(panels, plans.items(), strict=True):
        rows, layers = layer_mask.shape
        order = np.lexsort((*layer_mask.T, layer_mask.sum(axis=1)))
        axes.imshow(
            layer_mask[order],
            aspect="auto",
            interpolation="nearest",
            cmap=ListedColormap(["#f0f0f0", "#1f4e79"]),
            vmin=0,
            vmax=1,
            extent=(-0.5, layers - 0.5, 100, 0),
        )
        axes.set_xticks(range(layers))
        axes.set_xticks(np.arange(layers - 1) + 0.5, minor=True)
        axes.grid(which="minor", axis="x", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        mean = layer_mask.sum() / rows
        distinct = len(np.unique(layer_mask, axis=0))
        axes.set_title(f"budget {budget:g}\n{mean:.2f} layers, {distinct} plan(s)", fontsize=10)
        axes.set_xlabel("layer (dark: runs)")
    panels[0].set_ylabel("inputs, sorted by plan (%)")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_layers_by_difficulty(
    path: Path,
    plans: dict[float, np.ndarray],
    difficulty: np.ndarray,
    meaning: str,
    title: str,
) -> None:
    """A panel for each budget: how often each layer runs, by fifths of difficulty.

    Args:
        plans: layer_mask [N, L] by budget.
        difficulty: [N]; `meaning` says of what.
    """
    order = np.argsort(difficulty, kind="stable")
    fifths = np.array_split(order, min(5, len(order)))
    figure, panels = _panels(len(plans), 2.4 * len(plans) + 1.4, 3.6)
    image = None
    for axes, (budget, layer_mask) in zip(panels, plans.items(), strict=True):
        shares = np.array([layer_mask[rows].mean(axis=0) for rows in fifths])  # [fifths, L]
        image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(shares.shape[1]))
        axes.set_xlabel("layer")
        depths = [layer_mask[rows].sum(axis=1).mean() for rows in fifths]
        spread = f"{depths[0]:.2f} to {depths[-1]:.2f} layers"
        axes.set_title(f"budget {budget:g}\n{spread}", fontsize=10)
    panels[0].set_yticks(range(len(fifths)))
    panels[0].set_yticklabels([f"{i + 1}" for i in range(len(fifths))])
    panels[0].set_ylabel(f"fifth by {meaning}\n(1: easiest)")
    if image is not None:
        figure.colorbar(image, ax=panels, label="share of inputs that run the layer")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=140)
    plt.close(figure)
