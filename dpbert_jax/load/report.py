"""What a stream of requests met, in figures."""

from collections import Counter
from typing import Any

import numpy as np

from dpbert_jax.data import TaskData
from dpbert_jax.evaluation.metrics import compute_metrics
from dpbert_jax.load.hostile import EXPECTED
from dpbert_jax.load.traffic import ClosedLoop, OpenLoop, Traffic


def report_of(traffic: Traffic, task: TaskData, seconds: float) -> dict[str, Any]:
    """Figures of a stream; latencies are of requests with an answer, in milliseconds.

    `overhead_ms` is the median of what neither the queue nor the model took, this program's own
    part included; `generator_late_ms` the 95th percentile of how late requests were sent, which is
    its fault alone. A percentile that requests without an answer reach is None; the
    mean is of those with one.
    `memory_mb` is the server's at the start, at both thirds and at the end.
    `unexpected` are hostile requests that met another status than they should.
    """
    answered, load = traffic.answered, traffic.load
    latency = [each.latency for each in answered] or [np.inf]
    refused = [np.inf] * (len(traffic.sent) - len(answered))  # no promise was held for them
    taken = [each.latency - (each.started - each.due) for each in answered]
    beside = [t - s.queued - s.inference for t, s in zip(taken, answered, strict=True)] or [np.nan]
    late = [each.started - each.due for each in traffic.sent] or [np.nan]
    unexpected = Counter(
        f"{kind}: {status}" for kind, status in traffic.hostile if status not in EXPECTED[kind]
    )
    return {
        "url": traffic.url,
        "rate": load.rate if isinstance(load, OpenLoop) else None,
        "connections": load.connections if isinstance(load, ClosedLoop) else None,
        "requests": len(traffic.sent),
        "requests_per_second": round(len(traffic.sent) / seconds, 2),
        "status": {str(k): n for k, n in sorted(Counter(s.status for s in traffic.sent).items())},
        "answered_per_second": round(len(answered) / max(seconds, _ended(traffic)), 2),
        "mean_ms": _ms(np.mean(latency)),
        "p50_ms": _ms(np.quantile(latency + refused, 0.5, method="lower")),
        "p95_ms": _ms(np.quantile(latency + refused, 0.95, method="lower")),
        "p99_ms": _ms(np.quantile(latency + refused, 0.99, method="lower")),
        "overhead_ms": _ms(np.median(beside)),
        "generator_late_ms": _ms(np.quantile(late, 0.95)),
        "budget": _mean([each.budget for each in answered]),
        "cost": _mean([each.cost for each in answered]),
        **_score(traffic, task),
        "hostile": len(traffic.hostile),
        "unexpected": dict(unexpected),
        "memory_mb": [round(traffic.memory[at] / 2**20, 1) for at in _thirds(traffic.memory)],
    }


def _thirds(values: list[float]) -> list[int]:
    """Where the first, those at a third and two thirds, and the last stand."""
    last = len(values) - 1
    return [round(last * third / 3) for third in range(4)] if values else []


def _ended(traffic: Traffic) -> float:
    return max((each.due + each.latency for each in traffic.answered), default=0.0)


def _ms(seconds: Any) -> float | None:
    """None where there was no answer to be timed."""
    return round(1000 * float(seconds), 3) if np.isfinite(seconds) else None


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _score(traffic: Traffic, task: TaskData) -> dict[str, Any]:
    labels = task.splits[task.spec.validation_splits[0]].labels
    if labels is None or not traffic.answered:
        return {}
    names = task.spec.labels or list(traffic.answered[0].scores)
    logits = np.array([[each.scores[name] for name in names] for each in traffic.answered])
    true = np.asarray(labels)[[each.row for each in traffic.answered]]
    metrics = compute_metrics(task.spec, logits, true)
    return {"metrics": {name: round(value, 4) for name, value in metrics.items()}}
