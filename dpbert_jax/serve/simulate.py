"""A queue in front of one worker, simulated: the server's own policies on measured times."""

from bisect import bisect_right
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dpbert_jax.serve.policy import ArrivalRate, Policy, Queue, Slowness
from dpbert_jax.serve.smdp import Service


class Simulated(NamedTuple):
    """What N requests met, in the order in which they came; and what each batch was."""

    latency: Float[np.ndarray, " N"]  # seconds from arrival to answer
    levels: Int[np.ndarray, " N"]  # of the budgets that served them
    rows: Int[np.ndarray, " M"]  # of each batch
    batch_cost: float  # of all batches, as the service has it
    seconds: float  # from the first arrival's time zero to the last answer

    def mean_cost(self, latency_weight: float = 1.0) -> float:
        """Latency and batches, a request: what policies are compared by."""
        return latency_weight * float(self.latency.mean()) + self.batch_cost / len(self.latency)


def poisson_arrivals(rate: float, number: int, seed: int) -> Float[np.ndarray, " N"]:
    """Times of a Poisson stream, in seconds from 0."""
    return np.random.default_rng(seed).exponential(1 / rate, number).cumsum()


def bursty_arrivals(
    rates: tuple[float, float], mean_seconds: float, number: int, seed: int
) -> Float[np.ndarray, " N"]:
    """Times of a stream that changes between two rates, each for exponential times (an MMPP)."""
    random = np.random.default_rng(seed)
    times, now, state, until = np.empty(number), 0.0, 0, random.exponential(mean_seconds)
    for i in range(number):
        gap = random.exponential(1 / rates[state])
        while now + gap > until:
            # Of a Poisson stream what is left of a gap is a gap anew, here of the other rate.
            now, state = until, 1 - state
            until = now + random.exponential(mean_seconds)
            gap = random.exponential(1 / rates[state])
        now += gap
        times[i] = now
    return times


def simulate(
    policy: Policy,
    arrivals: Float[np.ndarray, " N"],
    service: Service,
    rate: float | None = None,
    known: Service | None = None,
) -> Simulated:
    """Runs a policy over arrival times, ascending.

    Args:
        rate: what the policy is told of the arrivals a second. Default: tracked, as in the server.
        known: the times that the policy was made for, where the service has others.
    """
    number, times = len(arrivals), arrivals.tolist()
    latency, levels = np.zeros(number), np.zeros(number, int)
    batches: list[int] = []
    cost, now, first, come = 0.0, 0.0, 0, 0  # `first` waits longest, `come` is next to come
    tracked, slow = ArrivalRate(), Slowness()
    while first < number:
        before, come = come, bisect_right(times, now, come)
        if rate is None:
            for when in times[before:come]:
                tracked.arrived(when)
        if first == come:
            now = times[come]
            continue
        seen = tracked.at(now) if rate is None else rate
        silence = now - times[come - 1]
        queue = Queue(come - first, now - times[first], seen, silence=silence, slowness=slow.value)
        decision = policy.decide(queue)
        if decision.rows == 0:
            now = min([now + decision.wait, *times[come : come + 1]])
            continue
        rows = min(decision.rows, come - first)
        taken = float(service.seconds[rows - 1, decision.level])
        if known is not None:
            slow.served(float(known.seconds[rows - 1, decision.level]), taken)
        now += taken
        cost += float(service.cost[rows - 1, decision.level])
        served = slice(first, first + rows)
        latency[served], levels[served] = now - arrivals[served], decision.level
        batches.append(rows)
        first += rows
    return Simulated(latency, levels, np.array(batches), cost, now)
