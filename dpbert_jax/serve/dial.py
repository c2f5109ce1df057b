"""The dial under load: which budget the next batch may spend, so that its latency holds.

Two ways. `QueueDial` is the simple one: the largest budget at which those who wait would be served
in time. The other, which it guards, is the solved table of `smdp`, whose actions are batch size and
budget together; `solve_for_target` finds the price of a lower budget at which the promise holds.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dpbert_jax.serve.policy import Decision, Policy, Queue, Table
from dpbert_jax.serve.simulate import poisson_arrivals, simulate
from dpbert_jax.serve.smdp import Service, Solved, solve

HEADROOM = 0.65  # of the promised latency: what is planned for, since service times vary
PRICES = tuple(float(price) for price in np.geomspace(1e-3, 10.0, 9))
ARRIVALS, SEED = 3000, 0  # that each price is tried on
FULL_BATCHES = 6  # in the longest queue told from longer ones: there the budget is the lowest
LATE_WEIGHT = 10.0  # of a second beyond the promise, against one of latency


@dataclass(frozen=True)
class QueueDial:
    """A policy's batches, at the largest budget at which the queue is served within the target.

    The whole queue is counted, in the largest batches: that is when the last one who waits will
    have an answer. A policy's own lower budget is kept: a solved table knows what is to come, and
    this what the machine is like now, which may be slower than when it was measured.
    """

    policy: Policy
    seconds: Float[np.ndarray, "A K"]
    target: float

    def decide(self, queue: Queue) -> Decision:
        decision = self.policy.decide(queue)
        return decision._replace(level=max(decision.level, self.level(queue)))

    def level(self, queue: Queue) -> int:
        """The first level, from the largest budget down, that is in time; the last if none is."""
        largest, levels = self.seconds.shape
        full, rest = divmod(queue.waiting, largest)
        left = (HEADROOM * self.target - queue.oldest) / queue.slowness
        for level in range(levels - 1):
            needed = full * self.seconds[largest - 1, level]
            needed += self.seconds[rest - 1, level] if rest else 0.0
            if needed <= left:
                return level
        return levels - 1


def with_price(service: Service, budgets: tuple[float, ...], price: float) -> Service:
    """A service in which each request that is served below the largest budget costs something.

    `price` is that of a request at budget 0, in seconds of latency; between it is linear.
    """
    spared = 1.0 - np.asarray(budgets) / budgets[0]
    number = np.arange(1, service.largest + 1)[:, None]
    return service._replace(cost=service.cost + price * number * spared)


def solve_for_target(
    service: Service, budgets: tuple[float, ...], rates: list[float], target: float
) -> Table:
    """At each rate the policy that spends most on its requests while 95 % are in time.

    That is the one of the highest price of a lower budget at which the simulated 95th percentile
    stays within the target, found by bisection; where none does, the lowest price is kept, which
    serves fastest.
    """
    chosen = [_at_price(service, budgets, rate, target) for rate in rates]
    return Table(
        tuple(rates), np.array([s.rows for s in chosen]), np.array([s.levels for s in chosen])
    )


def _at_price(service: Service, budgets: tuple[float, ...], rate: float, target: float) -> Solved:
    arrivals = poisson_arrivals(rate, ARRIVALS, SEED)

    def solved(price: float) -> Solved:
        return solve(
            with_price(service, budgets, price),
            rate,
            deadline=HEADROOM * target,
            late_weight=LATE_WEIGHT,
            states=FULL_BATCHES * service.largest,
            splits=False,
        )

    best, low, high = solved(PRICES[0]), 1, len(PRICES)
    while low < high:
        middle = (low + high) // 2
        tried = solved(PRICES[middle])
        table = Table((rate,), tried.rows[None], tried.levels[None])
        late = np.quantile(simulate(table, arrivals, service, rate).latency, 0.95)
        if late <= HEADROOM * target:
            best, low = tried, middle + 1
        else:
            high = middle
    return best
