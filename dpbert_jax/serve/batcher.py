"""The queue: texts of all requests in one line, served in batches as the policy decides."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.serve.backend import Backend
from dpbert_jax.serve.choose import Expected
from dpbert_jax.serve.errors import Overloaded, Unanswered
from dpbert_jax.serve.metrics import Metrics
from dpbert_jax.serve.policy import ArrivalRate, Policy, Queue, Slowness

logger = logging.getLogger(__name__)

MEMORY = 100.0  # texts that the mean number of tokens looks back


@dataclass(frozen=True)
class Text:
    """A text's answer, once it is there."""

    logits: np.ndarray  # [C]
    layer_mask: np.ndarray  # [L]
    cost: float
    budget: float
    queued: float  # seconds in the queue
    seconds: float  # that its batch took


@dataclass(eq=False)
class _Waiting:
    token_ids: np.ndarray
    type_ids: np.ndarray
    budget: float | None  # None: the dial's
    arrived: float  # the request
    queued: float  # the text in the line, once it is tokenised
    answer: asyncio.Future = field(repr=False)


class Batcher:
    """One line, one worker thread: a batch at a time, as a single CPU or accelerator has it."""

    def __init__(
        self,
        backend: Backend,
        budgets: Sequence[float],
        metrics: Metrics,
        *,
        max_batch_tokens: int,
        max_queue: int,
        max_queue_seconds: float,
    ) -> None:
        """`budgets`: the policy's levels, from the largest down."""
        self.budgets = tuple(budgets)
        self.budget = self.budgets[0]  # that the dial stands at
        self._backend, self._metrics = backend, metrics
        self._max_tokens, self._max_queue = max_batch_tokens, max_queue
        self._max_seconds = max_queue_seconds
        self._line: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._rate, self._slow = ArrivalRate(), Slowness()
        self._expected: Expected | None = None
        self._tokens = 0.0  # of a text, mean of those that came of late
        self._closing = False
        self.failed = False  # nobody decides any more
        self._gone = False  # a client of a text in the line has left
        self._worker = ThreadPoolExecutor(1, "inference")
        self._task: asyncio.Task | None = None

    def start(self, policy: Policy, expected: Expected | None = None) -> None:
        """Begins to serve, in the running event loop; `expected` as in `choose.Chosen`."""
        self._expected = expected
        self._metrics.budget.set(self.budget)
        self._task = asyncio.get_running_loop().create_task(self._watched(policy))

    async def close(self) -> None:
        """Serves all that was accepted, and ends."""
        self._closing = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._worker.shutdown()

    def __len__(self) -> int:
        return len(self._line)

    async def answer(
        self, rows: TokenizedSplit, budget: float | None, arrived: float
    ) -> list[Text]:
        """Queues the texts of a request that arrived then, and waits for them all.

        A caller that is cancelled takes its texts out of the line.

        Raises:
            Overloaded: the line is full, or they waited for too long.
            Unanswered: the model has no answer.
        """
        if self.failed:
            raise Unanswered("The server has failed, and has to be started anew.")
        if len(self._line) + len(rows) > self._max_queue or self._closing:
            raise Overloaded(f"{len(self._line)} texts are waiting: try again later.")
        loop, now = asyncio.get_running_loop(), time.monotonic()
        waiting = [
            _Waiting(
                rows.token_ids[start:end],
                rows.type_ids[start:end],
                budget,
                arrived,
                now,
                loop.create_future(),
            )
            for start, end in zip(rows.offsets, rows.offsets[1:], strict=False)
        ]
        for each in waiting:
            self._rate.arrived(now)
            self._tokens += (len(each.token_ids) - self._tokens) / MEMORY
            self._line.append(each)
        self._metrics.queue.set(len(self._line))
        self._changed.set()
        try:
            return list(await asyncio.gather(*(each.answer for each in waiting)))
        finally:
            for each in waiting:
                each.answer.cancel()
                self._gone |= each.answer.cancelled()

    async def _watched(self, policy: Policy) -> None:
        try:
            await self._serve(policy)
        except Exception:  # of a policy: nobody would be served any more, and nobody would say so
            logger.exception("No batch can be decided on any more.")
            self.failed = True
            for each in self._line:
                if not each.answer.done():
                    each.answer.set_exception(Unanswered("The server has failed."))

    async def _serve(self, policy: Policy) -> None:
        while True:
            self._drop()
            if not self._line:
                if self._closing:
                    return
                await self._event(None)
                continue
            now = time.monotonic()
            oldest = now - self._line[0].arrived
            seen = (self._rate.at(now), self._tokens, self._rate.silence(now), self._slow.value)
            queue = Queue(len(self._line), oldest, *seen)
            decision = policy.decide(queue)
            if decision.rows == 0 and not self._closing:
                # Whoever waits is asked for again before their time is up.
                await self._event(min(decision.wait, max(self._max_seconds - oldest, 0.0)))
                continue
            await self._run(self._taken(decision.rows or len(self._line)), decision.level)

    async def _event(self, seconds: float | None) -> None:
        """Waits for something to change, at most so long."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    def _drop(self) -> None:
        """Takes those out of the line whose client has gone, or who waited too long."""
        if self._gone:
            self._line = deque(each for each in self._line if not each.answer.done())
            self._gone = False
        now = time.monotonic()
        while self._line and now - self._line[0].arrived > self._max_seconds:
            late = self._line.popleft()
            error = f"No answer within {self._max_seconds:g} seconds in the queue."
            late.answer.set_exception(Overloaded(error))
            self._metrics.expired.inc()
        self._metrics.queue.set(len(self._line))

    def _taken(self, rows: int) -> list[_Waiting]:
        """The oldest so many, fewer where their tokens exceed a batch's."""
        taken, tokens = [], 0
        while self._line and len(taken) < rows:
            tokens += len(self._line[0].token_ids)
            if taken and tokens > self._max_tokens:
                break
            taken.append(self._line.popleft())
        self._metrics.queue.set(len(self._line))
        return taken

    async def _run(self, taken: list[_Waiting], level: int) -> None:
        began, budget = time.monotonic(), self.budgets[level]
        self.budget = budget
        rows = TokenizedSplit(
            np.concatenate([each.token_ids for each in taken]),
            np.concatenate([each.type_ids for each in taken]),
            np.cumsum([0, *(len(each.token_ids) for each in taken)], dtype=np.int64),
            None,
        )
        budgets = [budget if each.budget is None else each.budget for each in taken]
        loop = asyncio.get_running_loop()
        try:
            answers: Any = await loop.run_in_executor(
                self._worker, self._backend.answer, rows, budgets
            )
        except Exception:  # whatever it is, this batch has no answer, and the server lives on
            logger.exception("A batch of %d texts has no answer.", len(taken))
            self._metrics.failed.inc(len(taken))
            for each in taken:
                if not each.answer.done():
                    each.answer.set_exception(Unanswered("The model has no answer to this batch."))
            return
        seconds = time.monotonic() - began
        for i, each in enumerate(taken):
            if not each.answer.done():
                found = (answers.logits[i], answers.layer_mask[i], float(answers.cost[i]))
                each.answer.set_result(Text(*found, budgets[i], began - each.queued, seconds))
        if self._expected is not None and all(each.budget is None for each in taken):
            self._slow.served(self._expected(rows.lengths.mean(), len(taken), level), seconds)
        self._metrics.batch(rows, answers, budget, seconds, [began - e.queued for e in taken])
