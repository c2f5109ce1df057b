"""Answers under plans: those of the executor, and none of them computed a second time."""

import numpy as np
import pytest

from dpbert_jax.data import tokenize
from dpbert_jax.inference import resolve_rule
from dpbert_jax.study import answered as module
from dpbert_jax.study.answered import Answered
from dpbert_jax.study.fit import open_run
from dpbert_jax.study.scorer import open_scorer, run_split


@pytest.fixture(scope="module")
def scorer(tiny_run):
    run = open_run(str(tiny_run))
    name = run.task.spec.validation_splits[0]
    split = tokenize(run.task.splits[name], run.model.tokenizer, run.args.max_seq_length)
    return open_scorer(run, split)


def test_answers_are_the_executors_and_each_row_has_each_plan_once(scorer, monkeypatch):
    run, split, random = scorer.run, scorer.split, np.random.default_rng(0)
    execute, full = run.model.executor("packed"), resolve_rule(run.model.config, 1.0)
    layers = run.model.config.encoder.num_hidden_layers
    whole = run_split(run, split, execute, full)
    ran = []

    def counted(*about):
        ran.append(len(about[1]))
        return run_split(*about)

    monkeypatch.setattr(module, "run_split", counted)
    answered = Answered(scorer, [whole])
    np.testing.assert_array_equal(answered.under(whole.layer_mask).logits, whole.logits)
    assert not ran  # there already

    plans = random.integers(0, 2, (len(split), layers)).astype(np.int8)
    plans[:, 0] = 1
    asked = run_split(run, split, execute, full, plans)
    found = answered.under(plans)
    np.testing.assert_allclose(found.logits, asked.logits, atol=1e-5)
    np.testing.assert_array_equal(found.layer_mask, plans)
    np.testing.assert_array_equal(found.cost, asked.cost)
    assert ran == [int((plans == 0).any(axis=1).sum())]

    half = np.where(np.arange(len(split))[:, None] % 2, whole.layer_mask, plans)
    again = answered.under(half)
    odd = np.arange(len(split)) % 2 > 0
    np.testing.assert_array_equal(again.logits[odd], whole.logits[odd])
    np.testing.assert_array_equal(again.logits[~odd], found.logits[~odd])
    assert len(ran) == 1
