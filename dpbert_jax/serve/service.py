"""Texts in, answers out: what every protocol of the server calls."""

import asyncio
import gc
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dpbert_jax.errors import UserError
from dpbert_jax.inference.texts import Texts
from dpbert_jax.serve.arguments import ServeArguments
from dpbert_jax.serve.backend import Backend
from dpbert_jax.serve.batcher import Batcher, Text
from dpbert_jax.serve.choose import Chosen
from dpbert_jax.serve.errors import Invalid, Unhealthy
from dpbert_jax.serve.lanes import Lanes
from dpbert_jax.serve.metrics import Metrics
from dpbert_jax.serve.protocol import check_count

logger = logging.getLogger(__name__)

RECENT = 10.0  # seconds that the status looks back


class Answered(NamedTuple):
    """A request's answers, and its tokens."""

    texts: list[Text]
    tokens: int


class Service:
    """A backend with its queue; ready once all its shapes are warm."""

    def __init__(
        self,
        args: ServeArguments,
        backend: Backend,
        policy: Callable[[], Chosen],
        budgets: tuple[float, ...],
    ) -> None:
        """`policy` is asked for once the backend is warm: it may time it."""
        self.args, self.backend, self.metrics = args, backend, Metrics()
        self.started = asyncio.Event()  # the model is warm
        self._closing = False
        self._policy = policy
        self.batcher = Batcher(
            backend,
            budgets,
            self.metrics,
            max_batch_tokens=args.max_batch_tokens,
            max_queue=args.max_concurrent_requests * args.max_client_batch_size,
            max_queue_seconds=args.max_queue_ms / 1000,
        )
        self._tokenizing = Lanes(backend.tokenizer, args.max_queue_ms / 1000)
        self._latencies: deque[tuple[float, float]] = deque(maxlen=100_000)

    async def start(self) -> None:
        """Warms what answers, and begins to serve."""
        await asyncio.to_thread(self.backend.warm_up)
        self.batcher.start(*await asyncio.to_thread(self._policy))
        # What is here now stays: looking through all of it stops every thread for 0.2 seconds each
        # time, in the midst of requests.
        gc.collect()
        gc.freeze()
        self.started.set()
        logger.info("Ready.")

    async def close(self) -> None:
        """Refuses what comes, finishes what was accepted."""
        self._closing = True
        await self.batcher.close()
        self._tokenizing.close()
        gc.unfreeze()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.started.is_set() and not self._closing and not self.batcher.failed

    async def answer(
        self,
        texts: Texts,
        *,
        budget: float | None = None,
        truncate: bool = False,
        direction: str = "right",
    ) -> Answered:
        """Answers texts, or pairs, of one request.

        Raises:
            Refused: see `serve.errors`.
        """
        if not self.ready:
            raise Unhealthy("The server is not ready.")
        began = time.monotonic()
        check_count(len(texts), self.args.max_client_batch_size)
        if budget is not None:
            try:
                self.backend.check_budget(budget)
            except UserError as error:
                raise Invalid(str(error)) from None
        longest = self.backend.max_seq_length
        rows = await self._tokenizing.encode(texts, longest, truncate, direction, began)
        self.metrics.tokenization.observe(time.monotonic() - began)
        answers = await self.batcher.answer(rows, budget, began)
        now = time.monotonic()
        self._latencies.append((now, now - began))
        return Answered(answers, int(rows.offsets[-1]))

    def status(self) -> dict[str, float | int | None]:
        """The last seconds: for the page's live view; latencies are of what was answered."""
        now = time.monotonic()
        recent = [seconds for when, seconds in self._latencies if now - when < RECENT]
        return {
            "queue": len(self.batcher),
            "budget": self.batcher.budget if recent else self.batcher.budgets[0],
            "requests_per_second": round(len(recent) / RECENT, 2),
            "p50_ms": round(1000 * float(np.quantile(recent, 0.5)), 2) if recent else None,
            "p95_ms": round(1000 * float(np.quantile(recent, 0.95)), 2) if recent else None,
            "target_p95_ms": self.args.target_p95_ms,
        }
