"""What the server says of itself to Prometheus; texts are in none of it."""

from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.serve.backend import Answers

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The meters, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"dpbert_{name}_seconds", text, registry=registry, buckets=SECONDS)

        def counted(name: str, text: str, buckets: Sequence[float | int]) -> Histogram:
            return Histogram(f"dpbert_{name}", text, registry=registry, buckets=buckets)

        self.requests = Counter(
            "dpbert_requests", "Requests.", ["route", "status"], registry=registry
        )
        self.request = seconds("request", "From a request's arrival to its answer.")
        self.tokenization = seconds("tokenization", "Of a request's texts.")
        self.queued = seconds("queue_time", "A text's wait in the queue.")
        self.inference = seconds("inference", "A batch in the model.")
        self.rows = counted("batch_size", "Texts of a batch.", (1, 2, 4, 8, 16, 32, 64, 128))
        powers = tuple(2.0**n for n in range(3, 16))
        self.tokens = counted("batch_tokens", "Tokens of a batch.", powers)
        self.layers = counted("layers", "Layers that a text ran.", tuple(range(1, 25)))
        self.cost = counted(
            "cost",
            "A text's share of the dense FLOPs.",
            (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1),
        )
        self.budget = Gauge("dpbert_budget", "That the dial stands at.", registry=registry)
        self.queue = Gauge("dpbert_queue_size", "Texts that wait.", registry=registry)
        self.failed = Counter("dpbert_failed", "Texts the model failed on.", registry=registry)
        self.expired = Counter("dpbert_expired", "Texts that waited too long.", registry=registry)
        self.gone = Counter("dpbert_gone", "Requests whose client left.", registry=registry)

    def batch(
        self,
        rows: TokenizedSplit,
        answers: Answers,
        budget: float,
        seconds: float,
        queued: Sequence[float],
    ) -> None:
        """Notes a batch that was answered."""
        self.inference.observe(seconds)
        self.rows.observe(len(rows))
        self.tokens.observe(int(rows.offsets[-1]))
        self.budget.set(budget)
        for wait, layers, cost in zip(
            queued, np.asarray(answers.layer_mask).sum(axis=1), answers.cost, strict=True
        ):
            self.queued.observe(wait)
            self.layers.observe(float(layers))
            self.cost.observe(float(cost))
