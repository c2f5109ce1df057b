"""Evaluation of a split: every row once, in its place, whatever the batches."""

import numpy as np
import pytest

from dpbert_jax.data.tasks import GLUE_TASKS, custom_spec
from dpbert_jax.evaluation import evaluate
from dpbert_jax.evaluation.evaluate import Predictions, evaluation_figures, predict
from dpbert_jax.inference import Executor, make_executor, resolve_rule
from dpbert_jax.inference.path import DPBertOutput
from dpbert_jax.policies.cost import planner_share
from dpbert_jax.policies.protocol import Planned

ROWS = 23


def echo(batch, rule, forced):
    """What an executor runs; its logits are a row's first token and its length, all layers run."""
    first, length = batch["input_ids"][:, 0], batch["attention_mask"].sum(axis=1)
    rows = len(first)
    return DPBertOutput(np.stack([first, length], 1), np.ones((rows, 4)), np.zeros((rows, 3)))


@pytest.mark.parametrize("name", ["cond", "packed"])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 23, 64])
def test_every_row_once_and_in_its_place(name, batch_size, planned_config, random_split):
    execute = Executor(name, planned_config, Planned(planned_config), echo, packs=name == "packed")
    split = random_split(ROWS, longest=32)  # three length buckets
    rule = resolve_rule(planned_config, 1.0)
    made = predict(execute, rule, planned_config, split, batch_size=batch_size, max_seq_length=32)
    np.testing.assert_array_equal(made.logits[:, 0], np.arange(ROWS))
    np.testing.assert_array_equal(made.logits[:, 1], split.lengths)
    assert made.layer_mask.shape == (ROWS, 4)
    assert (made.cost > 1).all()


@pytest.fixture(scope="module")
def by_batch_size(planned_model, random_split):
    """Predictions at a middling budget: masked in batches of some sizes, and cond one by one."""
    config, params = planned_model
    split, rule = random_split(ROWS), resolve_rule(config, 0.7)
    sizes = {
        "masked 23": 23,
        "masked 5": 5,
        "masked 1": 1,
        "cond 1": 1,
        "packed 9": 9,
        "chunked 8": 8,
    }
    made = {}
    for name, size in sizes.items():
        execute = make_executor(name.split()[0], config, params)
        made[name] = predict(execute, rule, config, split, batch_size=size, max_seq_length=16)
    return made


@pytest.mark.parametrize("other", ["masked 5", "masked 1", "cond 1", "packed 9", "chunked 8"])
def test_neither_batch_size_nor_executor_changes_a_prediction(other, by_batch_size):
    wanted, found = by_batch_size["masked 23"], by_batch_size[other]
    np.testing.assert_array_equal(found.layer_mask, wanted.layer_mask)
    np.testing.assert_array_equal(found.cost, wanted.cost)
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-5, rtol=1e-5)
    assert len(np.unique(wanted.layer_mask, axis=0)) > 1
    assert found.seconds > 0


def test_seconds_are_the_executors_and_nothing_elses(planned_config, random_split, monkeypatch):
    """By a clock that only the executor moves, and by whole seconds."""
    now = [0.0]
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: now[0])

    def slow(batch, rule, forced):
        now[0] += 1.0
        return echo(batch, rule, forced)

    def counted(*args):
        now[0] += 100.0  # what a cost's compilation took, once
        return policy.cost(*args)

    policy, costly = Planned(planned_config), Planned(planned_config)
    costly.cost = counted
    execute = Executor("cond", planned_config, costly, slow)
    split = random_split(ROWS, longest=32)
    rule = resolve_rule(planned_config, 1.0)
    made = predict(execute, rule, planned_config, split, batch_size=4, max_seq_length=32)
    assert made.seconds == -(-ROWS // 4)  # batches; those of the warm-up are not counted


def test_cost_is_layers_and_planner_over_the_dense_encoder(
    by_batch_size, planned_config, random_split
):
    made = by_batch_size["masked 23"]
    planner = planner_share(planned_config, random_split(ROWS).lengths)
    wanted = made.layer_mask.sum(axis=1) / 4 + planner
    np.testing.assert_allclose(made.cost, wanted, rtol=1e-6)


def test_summary_by_hand():
    predictions = Predictions(
        logits=np.array([[2, 1], [0, 1], [1, 0], [0, 1]], np.float32),
        layer_mask=np.array([[1, 0, 0], [1, 1, 1], [1, 0, 1], [1, 0, 0]], np.int8),
        cost=np.array([0.25, 1.0, 0.5, 0.25], np.float32),
        seconds=1.5,
    )
    spec = GLUE_TASKS["mrpc"]
    dense = {"accuracy": 1.0, "f1": 1.0}
    labels = np.array([0, 1, 1, 1], np.int32)
    assert evaluation_figures(predictions, 0.4, spec, labels, dense) == {
        "metrics": {"accuracy": 0.75, "f1": pytest.approx(0.8)},
        "dense_metrics": dense,
        "f1_class": "equivalent",
        "score": pytest.approx(0.775),
        "score_kept": pytest.approx(0.775),
        "mean_layers": 1.75,
        "num_layers": 3,
        "cost": 0.4,
        "distinct_plans": 3,
        "layer_frequency": [1.0, 0.25, 0.5],
        "seconds": 1.5,
    }


def test_a_dense_score_of_zero_leaves_the_share_undefined():
    zeros = Predictions(np.eye(2, dtype=np.float32), np.ones((2, 3)), np.ones(2), 1.0)
    spec = custom_spec(("text",), ("no", "yes"))
    dense = {"accuracy": 0.0, "f1": 0.0}
    figures = evaluation_figures(zeros, 1.0, spec, np.zeros(2, np.int32), dense)
    assert np.isnan(figures["score_kept"])
