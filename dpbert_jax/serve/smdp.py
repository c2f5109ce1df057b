"""The best batching policy for measured service times: a semi-Markov decision process, solved.

Requests arrive as a Poisson stream and are served in batches, whose time and cost depend on their
size and budget. What is minimised is the mean cost a second: of requests in the system (by Little's
law their mean number is latency times rate), of lateness, and of batches. Source of the model: Xu,
Sun, Zhou, Niu, "SMDP-Based Dynamic Batching for Efficient Inference on GPU-Based Platforms" (2023),
which solves it by relative value iteration of its discretised form. Here it is Howard's policy
iteration: the same optimum, exact, with neither a step size nor a tolerance (Puterman, Markov
Decision Processes, 1994, section 11.4).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import poisson

from dpbert_jax.serve.policy import Table

ROUNDS = 100  # of policy iteration, which ends after a handful
FULL_BATCHES = 12  # in the longest queue that is told from longer ones
TAIL_COST = 10.0  # of each second in the tail, times what its last known state costs
LEVEL = 1e-9  # so much less another action has to cost to be better


class Service(NamedTuple):
    """What batches take: of 1 to A requests (rows), at each of K budgets (columns)."""

    seconds: Float[np.ndarray, "A K"]
    cost: Float[np.ndarray, "A K"]  # of one batch, in the unit that latency is weighted to

    @property
    def largest(self) -> int:
        return len(self.seconds)


class Solved(NamedTuple):
    """The best action for each number of waiting requests, and what it costs."""

    rows: Int[np.ndarray, " S"]  # 0: wait; state 0 always waits
    levels: Int[np.ndarray, " S"]
    gain: float  # mean cost a second


def solve(
    service: Service,
    rate: float,
    *,
    latency_weight: float = 1.0,
    deadline: float | None = None,
    late_weight: float = 0.0,
    states: int | None = None,
    splits: bool = True,
) -> Solved:
    """The policy of least mean cost a second at `rate` arrivals a second.

    Cost: `latency_weight` for each second that a request is in the system, averaged over requests;
    the batches' own, as `service` has it; and `late_weight` for each second and request beyond
    those that arrive within the `deadline`: with more of them in the system, the mean request of
    a queue is late.

    Args:
        states: numbers of waiting requests that are told apart. Default: twelve full batches.
        splits: whether a batch may leave some behind that would fit in. Who goes first is then
            answered sooner; but a real batch costs more than was measured, for the server too.
    """
    states = FULL_BATCHES * service.largest if states is None else states
    model = _Model(service, rate, states, latency_weight, (deadline, late_weight))
    # Greedy, at the last level, which is stable wherever anything is.
    greedy = np.minimum(np.arange(states + 1), service.largest)
    rows, levels = greedy, np.where(greedy > 0, service.seconds.shape[1] - 1, 0)
    gain, bias = model.evaluate(rows, levels)
    for _ in range(ROUNDS):
        better = model.improve(gain, bias, rows, levels, splits)
        if np.array_equal(better, (rows, levels)):
            break
        rows, levels = better
        gain, bias = model.evaluate(rows, levels)
    # The last state stands for all longer queues, and acts like the one before it.
    return Solved(rows[:states], levels[:states], float(gain))


def solve_table(service: Service, rates: list[float], **weights: Any) -> Table:
    """`solve` at each of some rates, ascending."""
    solved = [solve(service, rate, **weights) for rate in rates]
    return Table(
        tuple(rates), np.array([s.rows for s in solved]), np.array([s.levels for s in solved])
    )


class _Model:
    """States 0 .. S - 1 are requests waiting at a decision; state S is every longer queue.

    It acts like the one before it, and takes from there.
    """

    def __init__(
        self,
        service: Service,
        rate: float,
        states: int,
        latency_weight: float,
        late: tuple[float | None, float],
    ) -> None:
        self._service, self._rate, self._states = service, rate, states
        deadline, late_weight = late
        number = np.arange(2 * states + 1, dtype=float)
        # What a second costs with so many in the system. By Little's law n / rate is latency.
        holding = latency_weight * number / rate
        if deadline is not None:
            holding += late_weight * np.maximum(number - rate * deadline, 0.0) / rate
        mean = rate * service.seconds[..., None]  # arrivals during a batch, [A, K, 1]
        counts = np.arange(states + 1)
        self._arrivals = poisson.pmf(counts, mean)  # [A, K, S + 1]
        self._beyond = poisson.sf(counts, mean)  # P(more than so many arrive)
        self._waiting = holding[:states] / rate  # cost of waiting for the next arrival, [S]
        # A batch's seconds with exactly k more in the system are P(more than k arrive) / rate.
        held = sliding_window_view(holding, states + 1)[:states] @ self._beyond.transpose(0, 2, 1)
        self._serving = held.transpose(1, 0, 2) / rate + service.cost  # [S, A, K]

    def evaluate(self, rows: np.ndarray, levels: np.ndarray) -> tuple[float, np.ndarray]:
        """Gain and relative values of a policy: cost - gain * time + P value = value."""
        size = self._states + 1
        system, right = np.zeros((size + 1, size + 1)), np.zeros(size + 1)
        for state in range(size):
            cost, seconds, then = self._of(state, int(rows[state]), int(levels[state]))
            system[state, :size] = -then
            system[state, state] += 1.0
            system[state, size] = seconds
            right[state] = cost
        system[size, 0] = 1.0  # values are relative to that of an empty queue
        solved = np.linalg.solve(system, right)
        return float(solved[size]), solved[:size]

    def improve(
        self, gain: float, bias: np.ndarray, rows: np.ndarray, levels: np.ndarray, splits: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """In each state the action of least cost from here on; the present one where level."""
        states, service = self._states, self._service
        # By requests left behind, what is worth being there when the batch ends; [S, A, K].
        padded = np.concatenate([bias[:states], np.full(states, bias[states])])
        left = np.einsum("sn,akn->sak", sliding_window_view(padded, states + 1), self._arrivals)
        left += self._beyond[..., -1] * bias[states]
        worth = np.full((states, 1 + service.seconds.size), np.inf)
        worth[:, 0] = self._waiting - gain / self._rate + bias[1:]
        batch = worth[:, 1:].reshape(states, *service.seconds.shape)  # a view
        for number in range(1, service.largest + 1):
            last = states if splits or number == service.largest else number + 1
            batch[number:last, number - 1] = left[: last - number, number - 1]
        batch += self._serving - gain * service.seconds
        worth[0, 1:] = np.inf
        levels_of = service.seconds.shape[1]
        kept = np.where(rows > 0, 1 + (rows - 1) * levels_of + levels, 0)[:states]
        worth[np.arange(states), kept] -= LEVEL
        best = worth.argmin(axis=1)
        number, level = np.divmod(np.maximum(best - 1, 0), levels_of)
        rows, levels = np.where(best > 0, number + 1, 0), np.where(best > 0, level, 0)
        # In the tail, waiting would be for good.
        serving = states - 1 if rows[-1] else states - 1 - int((rows[::-1] > 0).argmax())
        return np.append(rows, max(rows[serving], 1)), np.append(levels, levels[serving])

    def _of(self, state: int, rows: int, level: int) -> tuple[float, float, np.ndarray]:
        """Cost, mean seconds and next states of an action."""
        then, tail = np.zeros(self._states + 1), state == self._states
        at = min(state, self._states - 1)
        if rows == 0:
            then[at + 1] = 1.0
            return float(self._waiting[at]), 1.0 / self._rate, then
        arrivals = self._arrivals[rows - 1, level]
        then[at - rows : self._states] = arrivals[: self._states - (at - rows)]
        then[self._states] = max(1.0 - then.sum(), 0.0)
        cost = float(self._serving[at, rows - 1, level]) * (TAIL_COST if tail else 1.0)
        return cost, float(self._service.seconds[rows - 1, level]), then
