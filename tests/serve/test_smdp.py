"""The solved policy: a reference, its form, and that nothing simple is better."""

import numpy as np
import pytest

from dpbert_jax.serve.policy import FixedSize, Greedy, Queue, Table
from dpbert_jax.serve.simulate import bursty_arrivals, poisson_arrivals, simulate
from dpbert_jax.serve.smdp import Service, solve, solve_table

ROWS = np.arange(1, 9)[:, None]
# Half the time is there for one request already; energy is a little cheaper by the batch.
SERVICE = Service(0.5 + 0.25 * ROWS, 0.5 * (1 + 0.3 * ROWS))
MOST = 8 / 2.5  # requests a second that full batches serve


def table_of(solved, rate):
    return Table((rate,), solved.rows[None], solved.levels[None])


def test_the_reference():
    """By relative value iteration of the discretised process, 112 iterations: 1.5203."""
    solved = solve(SERVICE, 0.8, states=60)
    assert solved.gain == pytest.approx(1.5203, abs=1e-4)
    wanted = [0, 1, 2, 3, 4, 5, 5, 5, 6, 6, 7, 7, 7, 8, 8]
    assert solved.rows[:15].tolist() == wanted


@pytest.mark.parametrize("load", [0.1, 0.4, 0.7, 0.95])
def test_its_simulated_cost_is_its_gain(load):
    rate = load * MOST
    solved = solve(SERVICE, rate)
    made = simulate(table_of(solved, rate), poisson_arrivals(rate, 40_000, 1), SERVICE, rate)
    found = (made.latency.sum() / rate + made.batch_cost) / made.seconds
    assert found == pytest.approx(solved.gain, rel=0.04)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9, 1.2])
@pytest.mark.parametrize("weight", [0.0, 1.0, 10.0])
def test_it_is_of_control_limit_form(load, weight):
    """From some length of the queue on it serves."""
    service = SERVICE._replace(cost=weight * SERVICE.cost)
    rows = solve(service, load * MOST).rows
    assert (np.diff(rows > 0) >= 0).all() and rows[0] == 0 and rows[-1] == 8
    assert (rows <= np.arange(len(rows))).all()


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9, 1.2])
@pytest.mark.parametrize("weight", [0.0, 1.0, 40.0])
def test_without_splits_it_waits_for_so_many_and_then_serves_them_all(load, weight):
    service = SERVICE._replace(cost=weight * SERVICE.cost)
    whole, free = (solve(service, load * MOST, splits=splits) for splits in (False, True))
    number = np.arange(len(whole.rows))
    assert set(np.unique(whole.rows - np.minimum(number, 8) * (whole.rows > 0))) == {0}
    assert (np.diff(whole.rows > 0) >= 0).all()
    assert free.gain <= whole.gain + 1e-9
    assert weight or (whole.rows == np.minimum(number, 8)).all()


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_neither_greedy_nor_fixed_batches_cost_less(load):
    rate = load * MOST
    arrivals = poisson_arrivals(rate, 5_000, 2)

    def cost(policy):
        made = simulate(policy, arrivals, SERVICE, rate)
        return (made.latency.sum() / rate + made.batch_cost) / made.seconds

    own = cost(table_of(solve(SERVICE, rate), rate))
    others = [Greedy(8), *(FixedSize(rows, wait) for rows in (2, 4, 8) for wait in (0.2, 1.0, 3.0))]
    assert own <= 1.02 * min(map(cost, others))


def test_a_dear_batch_is_waited_for():
    dear = SERVICE._replace(cost=SERVICE.cost + 50.0)
    assert solve(SERVICE._replace(cost=0 * SERVICE.cost), 0.3).rows[1] == 1
    assert (solve(dear, 0.3).rows > 0).argmax() > 1


def test_lateness_empties_a_queue_that_costs_would_let_grow():
    dear = SERVICE._replace(cost=SERVICE.cost + 50.0)
    patient = solve(dear, 1.0, states=60)
    hasty = solve(dear, 1.0, deadline=1.5, late_weight=20.0, states=60)
    assert (hasty.rows > 0).argmax() < (patient.rows > 0).argmax()


def test_budgets_fall_with_the_queue_where_the_larger_one_is_worth_something():
    seconds = np.concatenate([SERVICE.seconds, 0.5 * SERVICE.seconds], axis=1)
    price = np.concatenate([0 * ROWS, 2.0 * ROWS], axis=1)  # of the smaller budget
    solved = solve(Service(seconds, price), 2.0)
    levels = solved.levels[solved.rows > 0]
    assert levels[0] == 0 and levels[-1] == 1 and (np.diff(levels) >= 0).all()


def test_a_table_of_rates_looks_up_the_next_rate_above():
    table = solve_table(SERVICE, [0.5, 1.0, 2.0])
    for rate, at in ((0.1, 0), (0.5, 0), (0.7, 1), (9.0, 2)):
        for waiting in (1, 5, 10_000):
            state = min(waiting, table.rows.shape[1] - 1)
            assert table.decide(Queue(waiting, 0.0, rate)).rows == table.rows[at, state]


def test_nobody_waits_for_good_for_somebody_who_does_not_come():
    """Tables are solved down to some rate; a lone request at a lower one is served all the same."""
    dear = SERVICE._replace(cost=SERVICE.cost + 50.0)
    table = solve_table(dear, [0.5])
    waits = table.decide(Queue(1, 0.0, 0.001))
    assert waits.rows == 0 and 0 < waits.wait < 60
    assert table.decide(Queue(1, 9.0, 0.001, silence=waits.wait)).rows == 1
    made = simulate(table, np.array([0.0, 1e6]), dear)
    assert made.latency.max() < 60


def test_a_stream_of_two_rates_has_their_mean_and_more_spread():
    steady = poisson_arrivals(55.0, 50_000, 0)
    bursty = bursty_arrivals((10.0, 100.0), 1.0, 50_000, 0)
    assert 50_000 / bursty[-1] == pytest.approx(55.0, rel=0.1)
    counts = [np.histogram(times, np.arange(0, times[-1], 0.5))[0] for times in (steady, bursty)]
    assert counts[1].var() > 5 * counts[0].var()
