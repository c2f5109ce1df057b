"""Simple policies by hand, the tracked rate, and the dial's bounds."""

import numpy as np
import pytest

from dpbert_jax.serve.dial import HEADROOM, QueueDial, solve_for_target, with_price
from dpbert_jax.serve.policy import SHARE, ArrivalRate, Decision, FixedSize, Greedy, Queue, Slowness
from dpbert_jax.serve.simulate import poisson_arrivals, simulate
from dpbert_jax.serve.smdp import Service

BUDGETS = (1.0, 0.8, 0.6, 0.4)
ROWS = np.arange(1, 33)[:, None]
SECONDS = 0.004 + 0.003 * ROWS * np.array(BUDGETS)
SERVICE = Service(SECONDS, 0 * SECONDS)


def test_greedy_and_fixed_by_hand():
    assert Greedy(4).decide(Queue(3, 0.0, 1.0)) == Decision(3)
    assert Greedy(4).decide(Queue(9, 0.0, 1.0)) == Decision(4)
    fixed = FixedSize(4, 0.010)
    assert fixed.decide(Queue(5, 0.0, 1.0)) == Decision(4)
    assert fixed.decide(Queue(2, 0.010, 1.0)) == Decision(2)
    waits = fixed.decide(Queue(2, 0.004, 1.0))
    assert waits.rows == 0 and waits.wait == pytest.approx(0.006)


def test_simulation_of_a_few_by_hand():
    arrivals = np.array([0.0, 0.1, 0.2, 5.0])
    service = Service(np.array([[1.0], [1.5]]), np.array([[1.0], [1.0]]))
    made = simulate(Greedy(2), arrivals, service)
    assert made.rows.tolist() == [1, 2, 1]
    np.testing.assert_allclose(made.latency, [1.0, 2.4, 2.3, 1.0])
    made = simulate(FixedSize(2, 0.5), arrivals, service)
    assert made.rows.tolist() == [2, 1, 1]
    np.testing.assert_allclose(made.latency, [1.6, 1.5, 2.4, 1.5])


def test_the_tracked_rate_follows_the_load_and_falls_in_silence():
    tracked = ArrivalRate()
    for now in np.arange(0, 2, 0.01):
        tracked.arrived(float(now))
    assert tracked.at(2.0) == pytest.approx(100, rel=0.05)
    assert tracked.at(3.0) < 30
    for now in np.arange(3, 13, 0.1):
        tracked.arrived(float(now))
    assert tracked.at(13.0) == pytest.approx(10, rel=0.05)


def test_slowness_is_what_most_batches_stay_below_and_no_single_one_s():
    slow, random = Slowness(), np.random.default_rng(0)
    slow.served(0.01, 100.0)
    assert slow.value < 1.1
    values = []
    for ratio in random.uniform(1.0, 2.0, 4000):
        slow.served(0.01, 0.01 * float(ratio))
        values.append(slow.value)
    assert np.mean(values[400:]) == pytest.approx(1.0 + SHARE, abs=0.05)


@pytest.mark.parametrize("made", ["simple", "solved"])
def test_a_dial_learns_that_the_machine_is_slower_than_it_was(made):
    target, rate = 0.1, 0.9 * 32 / SECONDS[-1, 0]
    arrivals = poisson_arrivals(rate, 4000, 7)
    plain = Greedy(32)
    if made == "solved":
        plain = solve_for_target(SERVICE, BUDGETS, [rate, 1.5 * rate, 2 * rate], target)
    dial = QueueDial(plain, SECONDS, target)
    slower = SERVICE._replace(seconds=1.5 * SECONDS)
    late, knows = (
        float(np.quantile(simulate(dial, arrivals, slower, known=known).latency, 0.95))
        for known in (None, SERVICE)
    )
    assert knows < target and knows < late


def test_the_simple_dial_never_rises_with_the_queue():
    dial = QueueDial(Greedy(32), SECONDS, 0.1)
    for oldest in (0.0, 0.03, 0.2):
        levels = [dial.level(Queue(waiting, oldest, 1.0)) for waiting in range(1, 200)]
        assert (np.diff(levels) >= 0).all() and levels[-1] == 3
    assert dial.level(Queue(1, 0.0, 1.0)) == 0 and dial.level(Queue(1, 0.2, 1.0)) == 3


def test_both_dials_hold_a_load_that_the_largest_budget_does_not():
    """Within the target, and no further down than they have to be."""
    target, rate = 0.1, 1.4 * 32 / SECONDS[-1, 0]
    arrivals = poisson_arrivals(rate, 4000, 7)
    solved = solve_for_target(SERVICE, BUDGETS, [rate], target)
    for policy in (QueueDial(Greedy(32), SECONDS, target), QueueDial(solved, SECONDS, target)):
        made = simulate(policy, arrivals, SERVICE)
        assert np.quantile(made.latency, 0.95) < target
        assert np.array(BUDGETS)[made.levels].mean() > 0.55
    plain = simulate(Greedy(32), arrivals, SERVICE)
    assert np.quantile(plain.latency, 0.95) > 3 * target


def test_a_price_is_linear_in_what_is_spared():
    priced = with_price(SERVICE, BUDGETS, 2.0)
    np.testing.assert_allclose(priced.cost[0], [0.0, 0.4, 0.8, 1.2])
    np.testing.assert_allclose(priced.cost[9], 10 * priced.cost[0])
    assert 0 < HEADROOM < 1
