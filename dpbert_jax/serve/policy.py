"""Batching policies: when to start a batch, of how many requests, at which budget.

The server asks the policy whenever it is idle and something has changed: a request came, a batch
ended, or the time passed that the policy wanted to wait. The simulator asks the same policies.
"""

import math
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
    silence: float = 0.0  # seconds since the last one came
    slowness: float = 1.0  # of batches, as tracked, times what the policy knows


class Decision(NamedTuple):
    """A batch of so many of the oldest requests, or none for now."""

    rows: int
    level: int = 0  # which of the server's budgets, from the largest down
    wait: float = math.inf  # with no rows: seconds until the policy is asked again, if nobody comes


TICK = 1e-6  # seconds: waiting for less is not waiting
SHARE, STEP = 0.8, 0.05  # of batches that slowness covers; of its value, a batch's pull
PATIENCE = 5.0  # mean gaps between arrivals without one: of a Poisson stream 7 in 1,000 are longer


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
    """What `smdp.solve` found at several arrival rates: a look-up.

    Where it waits for another request and none comes for so long that the rate cannot be what it
    was solved for, it serves those that there are.
    """

    rates: tuple[float, ...]  # ascending
    rows: Int[np.ndarray, "R S"]  # of the batch, by rate and requests waiting; 0: wait
    levels: Int[np.ndarray, "R S"]

    def decide(self, queue: Queue) -> Decision:
        # The next rate above: a policy for more load than there is costs less than the reverse.
        # Batches that take twice as long are to a queue what twice the arrivals are.
        rate = queue.rate * queue.slowness
        at = min(int(np.searchsorted(self.rates, rate)), len(self.rates) - 1)
        state = min(queue.waiting, self.rows.shape[1] - 1)
        rows, level = int(self.rows[at, state]), int(self.levels[at, state])
        if rows == 0:
            left = PATIENCE / self.rates[at] - queue.silence
            if left > TICK:
                return Decision(0, wait=left)
            rows = min(queue.waiting, int(self.rows.max()))
        return Decision(rows, level)


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

    def silence(self, now: float) -> float:
        """Seconds since the last arrival; 0 before the first."""
        return 0.0 if self._last is None else now - self._last

    def at(self, now: float) -> float:
        """A silence longer than the mean says that the load has fallen, before the next arrival."""
        beyond = max(self.silence(now) - self._gap, 0.0)
        return 1.0 / max(self._gap + beyond / self._memory, 1e-9)


class Slowness:
    """How much longer batches take than was measured, tracked: what `SHARE` of them stay below.

    The server's own work and its neighbours' take processor time that the measurement, with nothing
    beside it, did not see; and a promise for 95 of 100 is not held by planning for mean batches.
    """

    def __init__(self) -> None:
        self.value = 1.0

    def served(self, expected: float, seconds: float) -> None:
        """Steps up or down so that it rests where the share is met; no batch counts for more."""
        slower = seconds > self.value * expected
        self.value *= 1.0 + STEP * (SHARE if slower else SHARE - 1.0)
