"""The queue: order, limits, budgets, those who leave, and a model that fails."""

import asyncio
import threading
import time

import numpy as np
import pytest

from dpbert_jax.policies.protocol import Planned
from dpbert_jax.serve.backend import Answers, Backend, even_groups, random_rows
from dpbert_jax.serve.batcher import Batcher
from dpbert_jax.serve.errors import Overloaded, Unanswered
from dpbert_jax.serve.metrics import Metrics
from dpbert_jax.serve.policy import Decision, Greedy


class Worker:
    """A backend whose answers are let go by the test, and which notes what it was asked."""

    def __init__(self, config):
        self.config = config
        self.asked, self.go, self.began = [], threading.Semaphore(0), threading.Semaphore(0)
        self.fails = False
        self.backend = Backend("test", "test", config, None, 16, self._answer, lambda: None, "")

    def _answer(self, rows, budgets):
        self.asked.append((rows.lengths.tolist(), list(budgets)))
        self.began.release()
        self.go.acquire()
        if self.fails:
            raise FloatingPointError("NaN")
        layers = np.zeros((len(rows), 4), np.float32)
        layers[:, 0] = 1
        logits = np.tile(rows.lengths[:, None], 2).astype(np.float32)
        return Answers(logits, layers, Planned(self.config).cost(layers, rows.lengths))


class HalfLater:
    """Waits for two texts."""

    def decide(self, queue):
        return Decision(0 if queue.waiting < 2 else queue.waiting, level=queue.waiting > 2)


@pytest.fixture
def worker(served_config):
    return Worker(served_config)


def run(worker, policy, scenario, **limits):
    async def main():
        given = {"max_batch_tokens": 1000, "max_queue": 100, "max_queue_seconds": 60.0, **limits}
        batcher = Batcher(worker.backend, (1.0, 0.5), Metrics(), **given)
        batcher.start(policy)
        await scenario(batcher)
        worker.go.release(100)
        await batcher.close()
        assert len(batcher) == 0

    asyncio.run(main())


def texts(*lengths):
    rows = [random_rows(1, length, 60) for length in lengths]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    ids = np.concatenate([row.token_ids for row in rows])
    return type(rows[0])(ids, np.zeros(len(ids), np.int8), offsets, None)


def ask(batcher, rows, budget):
    """A request that has just arrived."""
    return batcher.answer(rows, budget, time.monotonic())


async def begun(worker):
    await asyncio.to_thread(worker.began.acquire)


def test_those_who_came_meanwhile_are_one_batch_in_their_order(worker):
    async def scenario(batcher):
        first = asyncio.ensure_future(ask(batcher, texts(3), None))
        await begun(worker)
        others = [asyncio.ensure_future(ask(batcher, texts(n, n + 1), 0.7)) for n in (4, 6)]
        await asyncio.sleep(0)
        worker.go.release(2)
        assert [text.logits[0] for text in await first] == [3]
        answers = [await other for other in others]
        assert [[t.logits[0] for t in each] for each in answers] == [[4, 5], [6, 7]]
        assert {text.budget for each in answers for text in each} == {0.7}

    run(worker, Greedy(8), scenario)
    assert worker.asked == [([3], [1.0]), ([4, 5, 6, 7], [0.7] * 4)]


def test_a_policy_that_waits_is_asked_again_and_sets_the_dial(worker):
    async def scenario(batcher):
        one = asyncio.ensure_future(ask(batcher, texts(3), None))
        await asyncio.sleep(0)
        other = asyncio.ensure_future(ask(batcher, texts(4, 5), None))
        await begun(worker)
        assert batcher.budget == 0.5
        worker.go.release()
        await asyncio.gather(one, other)

    run(worker, HalfLater(), scenario)
    assert worker.asked == [([3, 4, 5], [0.5] * 3)]


def test_a_batch_has_so_many_tokens_at_most_but_always_one_text(worker):
    async def scenario(batcher):
        worker.go.release(10)
        await ask(batcher, texts(9, 5, 6, 15), None)

    run(worker, Greedy(8), scenario, max_batch_tokens=12)
    assert [lengths for lengths, _ in worker.asked] == [[9], [5, 6], [15]]


def test_a_full_line_is_refused_at_once(worker):
    async def scenario(batcher):
        running = asyncio.ensure_future(ask(batcher, texts(3), None))
        await begun(worker)
        waiting = asyncio.ensure_future(ask(batcher, texts(4, 5), None))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 texts are waiting"):
            await ask(batcher, texts(6), None)
        worker.go.release(2)
        await asyncio.gather(running, waiting)

    run(worker, Greedy(8), scenario, max_queue=2)


def test_who_leaves_is_not_computed(worker):
    async def scenario(batcher):
        running = asyncio.ensure_future(ask(batcher, texts(3), None))
        await begun(worker)
        leaving, staying = (asyncio.ensure_future(ask(batcher, texts(n), None)) for n in (4, 5))
        await asyncio.sleep(0)
        leaving.cancel()
        worker.go.release(2)
        await asyncio.gather(running, staying)

    run(worker, Greedy(8), scenario)
    assert [lengths for lengths, _ in worker.asked] == [[3], [5]]


def test_who_waited_too_long_is_refused(worker):
    async def scenario(batcher):
        with pytest.raises(Overloaded, match=r"within 0\.01 seconds"):
            await ask(batcher, texts(3), None)

    run(worker, HalfLater(), scenario, max_queue_seconds=0.01)
    assert worker.asked == []


def test_a_batch_that_fails_is_an_error_of_its_own(worker):
    async def scenario(batcher):
        worker.fails = True
        worker.go.release(1)
        with pytest.raises(Unanswered):
            await ask(batcher, texts(3, 4), None)
        worker.fails = False
        worker.go.release(1)
        assert len(await ask(batcher, texts(5), None)) == 1

    run(worker, Greedy(8), scenario)


class Broken:
    """A policy that fails."""

    def decide(self, queue):
        raise ZeroDivisionError


def test_a_policy_that_fails_leaves_nobody_waiting(worker):
    async def scenario(batcher):
        for _ in range(2):
            with pytest.raises(Unanswered):
                await ask(batcher, texts(3), None)
        assert batcher.failed
        batcher._line.clear()

    run(worker, Broken(), scenario)


def test_what_came_long_ago_is_refused_however_short_it_stood_in_the_line(worker):
    async def scenario(batcher):
        with pytest.raises(Overloaded):
            await batcher.answer(texts(3), None, time.monotonic() - 61)

    run(worker, Greedy(8), scenario)
    assert worker.asked == []


def test_closing_answers_whoever_was_accepted(worker):
    async def scenario(batcher):
        waiting = asyncio.ensure_future(ask(batcher, texts(3), None))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await ask(batcher, texts(4), None)
        worker.go.release(1)
        assert [text.logits[0] for text in await waiting] == [3]
        await closing

    run(worker, HalfLater(), scenario)


def test_even_groups_hold_every_row_once_of_one_budget_and_little_padding():
    random = np.random.default_rng(0)
    lengths, budgets = random.integers(1, 100, 60), random.choice([0.5, 1.0], 60)
    groups = list(even_groups(lengths, budgets, 1.15))
    assert sorted(np.concatenate(groups).tolist()) == list(range(60))
    for group in groups:
        assert len(set(budgets[group])) == 1
        assert lengths[group].max() * len(group) <= 1.15 * lengths[group].sum()
    assert len(groups) < 20
