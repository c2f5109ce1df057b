"""From flags to a policy: measured once, kept, and served with."""

import dataclasses
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_tokenizer, save_folder
from dpbert_jax.serve import choose, measure
from dpbert_jax.serve.arguments import ServeArguments
from dpbert_jax.serve.backend import open_backend, random_rows
from dpbert_jax.serve.policy import Queue, Table

SIZES = {"max_batch_size": 2, "max_padding": 1.15}


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Few rates, few rounds, and a folder of its own for what is measured."""
    monkeypatch.setattr(measure, "FOLDER", str(tmp_path))
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(choose, "LOADS", (0.5, 1.5))
    return tmp_path


@pytest.mark.parametrize("lowest", [None, 0.4])
def test_the_default_policy_is_measured_solved_and_served_with(
    quick, serving, served_folder, lowest
):
    with serving(served_folder, policy="smdp", min_budget=lowest) as client:
        for text in ("a dog", "the film was good"):
            assert client.post("/predict", json={"inputs": text}).status_code == 200
        assert client.service.batcher.budgets[-1] == (1.0 if lowest is None else 0.4)
    assert len(list(quick.glob("*.json"))) == 1


def test_what_was_measured_is_kept_and_measured_anew_where_asked(quick, served_folder, monkeypatch):
    backend = open_backend(str(served_folder), "auto", **SIZES)
    first = measure.measured(backend, 2, 0.4, anew=False)
    assert measure.measured(backend, 2, 0.4, anew=False) == first
    assert measure.measured(backend, 2, 0.4, anew=True) != first
    service = first.service(10, (1.0, 0.4))
    assert service.seconds.shape == (2, 2) and (np.diff(service.seconds, axis=0) >= 0).all()


def test_a_budget_takes_what_texts_of_the_length_cost_at_it():
    """Short texts have all layers from half the budget on; long ones get theirs above it."""
    costs, seconds = [[0.5, 1.0, 1.0], [0.5, 0.5, 1.0]], [[[0.01, 0.02]], [[0.1, 0.2]]]
    times = measure.Measured([1], [16, 128], [0.4, 0.7, 1.0], costs, seconds)
    short, long = (times.service(length, (1.0, 0.7, 0.55, 0.4)).seconds[0] for length in (16, 128))
    np.testing.assert_allclose(short, [0.02, 0.02, 0.015, 0.01])
    np.testing.assert_allclose(long, [0.2, 0.1, 0.1, 0.1])


def test_fewer_layers_never_take_longer_and_where_none_are_saved_no_time_is():
    """What says otherwise is noise."""
    for costs, seconds in (([0.5, 1.0], [0.03, 0.02]), ([1.0, 1.0], [0.01, 0.02])):
        times = measure.Measured([1], [16], [0.4, 1.0], [costs], [[seconds]])
        np.testing.assert_allclose(times.service(16, (1.0, 0.4)).seconds[0], [0.02, 0.02])


def test_costs_are_asked_at_budgets_that_were_trained_for(
    quick, served_config, random_params, tiny_folder, tmp_path
):
    planner = dataclasses.replace(served_config.planner, max_budget=0.8)
    config = dataclasses.replace(served_config, planner=planner)
    folder = tmp_path / "up_to_most"
    folder.mkdir()
    save_folder(folder, config, random_params(config, 3), load_tokenizer(tiny_folder))
    backend = open_backend(str(folder), "auto", **SIZES)
    found = measure.measure(backend, 1, 0.4)
    np.testing.assert_allclose(found.budgets, [0.4, 0.5, 0.6, 0.7, 0.8, 1.0])
    for length, costs in zip(found.lengths, found.costs, strict=True):
        texts = random_rows(measure.TEXTS, length, config.encoder.vocab_size)
        for budget, cost in zip(found.budgets, costs, strict=True):
            answers = backend.answer(texts, [budget] * len(texts))
            assert cost == pytest.approx(float(answers.cost.mean()))


def test_other_weights_have_latencies_of_their_own(
    served_folder, served_config, random_params, tiny_folder, tmp_path
):
    other = tmp_path / "tiny"
    other.mkdir()
    save_folder(other, served_config, random_params(served_config, 4), load_tokenizer(tiny_folder))
    about = [
        measure.fingerprint(open_backend(str(folder), "auto", **SIZES), 2, 0.4)
        for folder in (served_folder, other, served_folder)
    ]
    assert about[0] != about[1] and about[0] == about[2]


def test_replicas_that_start_together_measure_once(quick, served_folder, monkeypatch):
    backend = open_backend(str(served_folder), "auto", **SIZES)
    real, measuring = measure.measure, []

    def once(*about):
        measuring.append(about)
        return real(*about)

    monkeypatch.setattr(measure, "measure", once)
    with ThreadPoolExecutor(2) as together:
        calls = [together.submit(measure.measured, backend, 2, 0.4, False) for _ in range(2)]
        first, second = (call.result() for call in calls)
    assert first == second and len(measuring) == 1


def test_where_batches_cost_something_requests_wait_for_each_other(
    quick, served_folder, monkeypatch
):
    """Two texts take hardly longer than one."""
    seconds = [[[0.01, 0.01], [0.011, 0.011]]]
    times = measure.Measured([1, 2], [32], [0.4, 1.0], [[1.0, 1.0]], seconds)
    monkeypatch.setattr(choose, "measured", lambda *about: times)
    backend = open_backend(str(served_folder), "auto", **SIZES)
    for cost, rows in ((0.0, 1), (1.0, 0)):
        args = ServeArguments(
            str(served_folder), policy="smdp", batch_cost=cost, max_batch_size=2, max_padding=1.15
        )
        policy, _ = choose.choose_policy(args, backend, (1.0,))
        assert policy.decide(Queue(1, 0.0, 90.0)).rows == rows
        assert policy.decide(Queue(2, 0.0, 90.0)).rows == 2


def test_a_policy_for_each_length_is_asked_by_the_mean_length():
    tables = [Table((1.0,), np.full((1, 9), rows), np.zeros((1, 9), int)) for rows in (1, 2)]
    policy = choose.ByLength((16, 32), tuple(tables))
    for tokens, rows in ((3.0, 1), (16.0, 1), (20.0, 2), (99.0, 2)):
        assert policy.decide(Queue(5, 0.0, 1.0, tokens)).rows == rows


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"min_budget": 0.1}, "trained for budgets"),
        ({"budget": [0.5], "min_budget": 0.6}, "above the budget"),
        ({"budget": [2.0]}, r"must lie in \(0, 1\]"),
        ({"batch_cost": -1.0, "policy": "smdp"}, "must not be below 0"),
        ({"batch_cost": 1.0, "policy": "greedy"}, "name that policy"),
    ],
)
def test_budgets_that_cannot_be_had_are_refused(served_folder, flags, sentence):
    backend = open_backend(str(served_folder), "jax", **SIZES)
    with pytest.raises(UserError, match=sentence):
        choose.budgets_of(ServeArguments(str(served_folder), **flags), backend)


def test_a_warm_backend_compiles_nothing(served_folder, caplog):
    backend = open_backend(str(served_folder), "jax", max_batch_size=4, max_padding=1.15)
    backend.warm_up()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for number, length in itertools.product(range(1, 5), (3, 9, 20, 32)):
            for budget in (0.5, 1.0):
                backend.answer(random_rows(number, length, 20), [budget] * number)
    assert "Compiling" not in caplog.text


def test_a_folder_of_the_other_backend_is_refused(served_folder):
    with pytest.raises(UserError, match="is no ONNX export"):
        open_backend(str(served_folder), "onnx", **SIZES)


def test_an_onnx_export_answers_as_the_run_does(served_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    from dpbert_jax.model import Model

    Model.from_pretrained(served_folder).export("onnx", tmp_path / "onnx")
    rows, budgets = random_rows(5, 9, 20), [0.5, 1.0, 0.5, 0.8, 1.0]
    one, other = (
        open_backend(str(folder), "auto", **SIZES).answer(rows, budgets)
        for folder in (served_folder, tmp_path / "onnx")
    )
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
    np.testing.assert_array_equal(one.layer_mask, other.layer_mask)
    np.testing.assert_allclose(one.cost, other.cost)
