"""The picture of a stream: how many came, how long they took, what was spent on them."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")

from matplotlib import pyplot as plt

from dpbert_jax.load.traffic import Traffic


def plot_traffic(path: Path, streams: list[Traffic], seconds: float) -> None:
    """Each second's requests, the 95th percentile of their latency, and their mean budget.

    A line for each server; the requests are the first one's.
    """
    edges = np.arange(0, seconds + 1)
    figure, (load, late, spent) = plt.subplots(
        3, 1, figsize=(7, 6), sharex=True, layout="constrained"
    )
    due = [each.due for each in streams[0].sent]
    load.stairs(np.histogram(due, edges)[0], edges, fill=True, color="tab:gray")
    for stream in streams:
        at = np.digitize([each.due for each in stream.answered], edges) - 1
        latency = 1000 * np.array([each.latency for each in stream.answered])
        budget = np.array([each.budget for each in stream.answered])
        bins = np.unique(at)
        p95 = [np.quantile(latency[at == second], 0.95) for second in bins]
        late.plot(bins + 0.5, p95, label=stream.url)
        spent.plot(bins + 0.5, [budget[at == second].mean() for second in bins])
    load.set_ylabel("requests a second")
    late.set(ylabel="p95 of latency (ms)", yscale="log")
    late.legend(loc="upper right")
    spent.set(ylabel="mean budget", xlabel="seconds", ylim=(0, 1.05), xlim=(0, seconds))
    figure.savefig(path, dpi=150)
    plt.close(figure)
