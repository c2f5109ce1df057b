"""The picture of a stream: how many came, how long they took, what was spent on them."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")

from matplotlib import pyplot as plt

from dpbert_jax.serve.traffic import Traffic


def plot_traffic(path: Path, traffic: Traffic, seconds: float) -> None:
    """Each second's requests, the 95th percentile of their latency, and their mean budget."""
    edges = np.arange(0, seconds + 1)
    due = np.array([each.due for each in traffic.sent])
    at = np.digitize([each.due for each in traffic.answered], edges) - 1
    latency = 1000 * np.array([each.latency for each in traffic.answered])
    budget = np.array([each.budget for each in traffic.answered])
    bins = np.unique(at)
    figure, (load, late, spent) = plt.subplots(
        3, 1, figsize=(7, 6), sharex=True, layout="constrained"
    )
    load.stairs(np.histogram(due, edges)[0], edges, fill=True, color="tab:gray")
    load.set_ylabel("requests a second")
    late.plot(bins + 0.5, [np.quantile(latency[at == b], 0.95) for b in bins], color="tab:blue")
    late.set(ylabel="p95 of latency (ms)", ylim=(0, None))
    spent.plot(bins + 0.5, [budget[at == b].mean() for b in bins], color="tab:orange")
    spent.set(ylabel="mean budget", xlabel="seconds", ylim=(0, 1.05), xlim=(0, seconds))
    figure.savefig(path, dpi=150)
    plt.close(figure)
