"""From flags to the budgets of the dial and the policy that decides on batches."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dpbert_jax.errors import UserError
from dpbert_jax.policies.rule import budget_range
from dpbert_jax.serve.arguments import ServeArguments
from dpbert_jax.serve.backend import Backend
from dpbert_jax.serve.dial import HEADROOM, LATE_WEIGHT, QueueDial, solve_for_target
from dpbert_jax.serve.measure import measured
from dpbert_jax.serve.policy import Decision, FixedSize, Greedy, Policy, Queue
from dpbert_jax.serve.smdp import Service, solve_table

logger = logging.getLogger(__name__)

LEVELS = 5  # budgets that the dial moves between
LOADS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.1, 1.3, 1.6, 2.0, 2.5)  # of what full budget bears


def budgets_of(args: ServeArguments, backend: Backend) -> tuple[float, ...]:
    """The budgets of the dial, from the largest down.

    Raises:
        UserError: the model cannot be asked for them.
    """
    config = backend.config
    if args.budget is not None:
        [largest] = args.budget
    else:
        largest = config.default_budget if config.default_budget is not None else 1.0
    lowest = largest if args.min_budget is None else args.min_budget
    if lowest > largest:
        raise UserError(f"--min_budget is {lowest}, above the budget, {largest}.")
    budgets = sorted({float(b) for b in np.linspace(lowest, largest, LEVELS)}, reverse=True)
    trained = budget_range(config)
    if trained is not None and trained[1] < 1 and budgets[0] == 1.0:
        # Between what was trained for and all layers there is nothing to ask for.
        budgets = [1.0, *(b for b in budgets if b <= trained[1])]
    for budget in budgets:
        backend.check_budget(budget)
    return tuple(budgets)


# Seconds that a batch should take: of texts of so many tokens on the mean, so many, at a level.
Expected = Callable[[float, int, int], float]


@dataclass(frozen=True)
class ByLength:
    """A policy for each length of texts: what batches take depends on it."""

    lengths: tuple[int, ...]  # ascending
    policies: tuple[Policy, ...]

    def decide(self, queue: Queue) -> Decision:
        at = min(int(np.searchsorted(self.lengths, queue.tokens)), len(self.lengths) - 1)
        return self.policies[at].decide(queue)


class Chosen(NamedTuple):
    """A policy, and the times that it was made for; None where it asks for none."""

    policy: Policy
    expected: Expected | None


def choose_policy(args: ServeArguments, backend: Backend, budgets: tuple[float, ...]) -> Chosen:
    """The policy of the flags, for latencies measured on this machine where it needs them."""
    plain: Policy = Greedy(args.max_batch_size)
    if args.policy == "fixed":
        plain = FixedSize(args.batch_size, args.batch_timeout_ms / 1000)
    if args.policy != "smdp" and len(budgets) == 1:
        return Chosen(plain, None)
    found = measured(backend, args.max_batch_size, budgets[-1], args.measure)
    target = args.target_p95_ms / 1000
    services = [found.service(length, budgets, args.batch_cost) for length in found.lengths]
    policies: list[Policy] = []
    for service in services:
        if args.policy == "smdp" and len(budgets) == 1:
            policies.append(
                solve_table(
                    service,
                    rates_of(service),
                    deadline=HEADROOM * target,
                    late_weight=LATE_WEIGHT,
                    splits=False,
                )
            )
            continue
        if args.policy == "smdp":
            plain = solve_for_target(service, budgets, rates_of(service), target)
        policies.append(QueueDial(plain, service.seconds, target))

    def expected(tokens: float, rows: int, level: int) -> float:
        """Between the lengths that were measured it is linear."""
        row = min(rows, args.max_batch_size) - 1
        seconds = [float(service.seconds[row, level]) for service in services]
        return float(np.interp(tokens, found.lengths, seconds))

    return Chosen(ByLength(tuple(found.lengths), tuple(policies)), expected)


def rates_of(service: Service) -> list[float]:
    """Arrival rates to solve for, as shares of what full batches at the largest budget serve."""
    most = service.largest / float(service.seconds[-1, 0])
    return [load * most for load in LOADS]
