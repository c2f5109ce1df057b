"""Batching policies: when to start a batch, of how many requests, at which budget.

The server asks the policy whenever it is idle and something has changed: a request came, a batch
ended, or the time passed that the policy wanted to wait. The simulator asks the same policies.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int


class Queue(NamedTuple):
    """What a policy sees of those who wait."""

    waiting: int  # requests, at least 1
    oldest: float  # seconds that the first has waited
    rate: float  # arrivals a second, as tracked
    tokens: float = 0.0  # of a request, mean of those that came of late


class Decision(NamedTuple):
    """A batch of so many of the oldest requests, or none for now."""

    rows: int
    level: int = 0  # which of the server's budgets, from the largest down
    wait: float | None = None  # seconds until the policy is asked again anyway; None: at an event


TICK = 1e-6  # seconds: waiting for less is not waiting


@runtime_checkable
class Policy(Protocol):
    """Decides, asked while nothing runs."""

    def decide(self, queue: Queue) -> Decision: ...


@dataclass(frozen=True)
class Greedy:
    """Whatever waits, at once, at most `max_rows`."""

    max_rows: int

    def decide(self, queue: Queue) -> Decision:
        return Decision(min(queue.waiting, self.max_rows))


@dataclass(frozen=True)
class FixedSize:
    """A full batch, or what there is once the oldest has waited for `timeout` seconds.

    The form of Triton's and BentoML's dynamic batchers.
    """

    rows: int
    timeout: float

    def decide(self, queue: Queue) -> Decision:
        left = self.timeout - queue.oldest
        if queue.waiting >= self.rows or left <= TICK:
            return Decision(min(queue.waiting, self.rows))
        return Decision(0, wait=left)


@dataclass(frozen=True)
class Table:
    """What `smdp.solve` found at several arrival rates: a look-up."""

    rates: tuple[float, ...]  # ascending
    rows: Int[np.ndarray, "R S"]  # of the batch, by rate and requests waiting; 0: wait
    levels: Int[np.ndarray, "R S"]

    def decide(self, queue: Queue) -> Decision:
        # The next rate above: a policy for more load than there is costs less than the reverse.
        at = min(int(np.searchsorted(self.rates, queue.rate)), len(self.rates) - 1)
        state = min(queue.waiting, self.rows.shape[1] - 1)
        return Decision(int(self.rows[at, state]), int(self.levels[at, state]))


class ArrivalRate:
    """Arrivals a second, tracked: an exponential mean of the time between them."""

    def __init__(self, memory: float = 20.0, first: float = 1.0) -> None:
        """`memory`: how many arrivals back it looks; `first`: what it says before any came."""
        self._memory, self._gap = memory, 1.0 / first
        self._last: float | None = None

    def arrived(self, now: float) -> None:
        if self._last is not None:
            self._gap += (now - self._last - self._gap) / self._memory
        self._last = now

    def at(self, now: float) -> float:
        """A silence longer than the mean says that the load has fallen, before the next arrival."""
        silence = 0.0 if self._last is None else now - self._last
        return 1.0 / max(self._gap + max(silence - self._gap, 0.0) / self._memory, 1e-9)
