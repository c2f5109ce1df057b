"""Pictures of a benchmark: latency against layers kept, and throughput on real lengths."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt

from dpbert_jax.errors import UserError

Row = dict[str, Any]
COLOURS = {
    "cond": "tab:blue",
    "chunked": "tab:green",
    "packed": "tab:orange",
    "masked": "tab:gray",
    "torch": "tab:red",
    "onnxruntime": "tab:purple",
    "openvino": "tab:brown",
}


def check_plot(path: Path) -> None:
    """Refuses a file type that cannot be drawn."""
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--plot {path}: the name must end in .png, .pdf or .svg.")


def plot_latency(path: Path, rows: list[Row], title: str) -> None:
    """A panel for each batch shape; the ideal line goes from no time to the dense program's."""
    shapes = list(dict.fromkeys((row["batch_size"], row["seq_length"]) for row in rows))
    figure, panels = plt.subplots(
        1, len(shapes), figsize=(4.2 * len(shapes), 4.2), layout="constrained", squeeze=False
    )
    for axes, shape in zip(panels[0], shapes, strict=True):
        mine = [r for r in rows if (r["batch_size"], r["seq_length"]) == shape and r["keep"]]
        deepest = max(row["keep"] for row in mine)
        for name, colour in COLOURS.items():
            points = sorted((r["keep"], r["median_ms"]) for r in mine if r["variant"] == name)
            if not points:
                continue
            if name in ("cond", "chunked", "packed"):
                axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
            else:
                label = f"{name}, dense" if name != "masked" else "masked (skips nothing)"
                axes.axhline(points[-1][1], color=colour, linestyle="--", label=label)
        skipping = [r for r in mine if r["variant"] in ("cond", "chunked", "packed")]
        full = [r["median_ms"] for r in skipping if r["keep"] == deepest]
        if full:
            axes.plot([0, deepest], [0, min(full)], ":", color="black", label="ideal")
        axes.set(
            title=f"batch {shape[0]}, {shape[1]} tokens",
            xlabel="layers kept",
            ylabel="median time (ms)",
            xlim=(0, deepest * 1.03),
        )
        axes.set_ylim(bottom=0)
    panels[0, 0].legend(fontsize=8)
    figure.suptitle(title)
    _save(figure, path)


def plot_throughput(path: Path, rows: list[Row], title: str) -> None:
    """A bar for each variant, in samples a second."""
    ordered = sorted(rows, key=lambda row: row["samples_per_second"])
    labels = [f"{r['variant']}, {r['keep']} layers, batch {r['batch_size']}" for r in ordered]
    values = [row["samples_per_second"] for row in ordered]
    colours = [COLOURS[row["variant"].split(",")[0]] for row in ordered]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(rows) + 1.4), layout="constrained")
    bars = axes.barh(labels, values, color=colours)
    axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=3)
    axes.margins(x=0.1)
    axes.set(xlabel="samples a second, token ids to logits", title=title)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
