"""The model: text in, labels and plans out, the same as evaluation gives."""

import dataclasses
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.data import Examples, tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.hub import load_run, load_tokenizer, save_folder
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.inference.texts import Encoder, read_texts
from dpbert_jax.model import Model
from dpbert_jax.serve.backend import open_backend
from dpbert_jax.study.trbert import initial_selectors

VOCABULARY = "the a cat dog sat ran on mat in sun and it was film walk good bad"
TEXTS = ["the cat sat on the mat", "a film"]
LONG = "the cat sat on the mat and a dog ran in the sun and it was good"


@pytest.fixture(scope="module")
def model(tiny_run):
    return Model.from_pretrained(str(tiny_run))


def copied(run: Path, folder: Path) -> Path:
    """The run's folder without its checksums, to be changed."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "SHA256SUMS"))
    return folder


@pytest.fixture
def untrained(tmp_path, tiny_folder, random_params):
    """A function (seed, config, changes of the tiny preset) -> the model of a random model."""

    def make(seed, *planned, **changes):
        config = DPBertConfig(dataclasses.replace(TINY, **changes), *planned)
        save_folder(tmp_path, config, random_params(config, seed), load_tokenizer(tiny_folder))
        return Model.from_pretrained(str(tmp_path))

    return make


def test_each_text_gets_a_label_probabilities_and_its_layers(model, tiny_run):
    config = read_config(tiny_run)
    predictions = model.predict(TEXTS, budget=1.0)
    assert [p.layers for p in predictions] == [tuple(range(config.encoder.num_hidden_layers))] * 2
    for p in predictions:
        assert tuple(p.probabilities) == config.encoder.labels
        assert sum(p.probabilities.values()) == pytest.approx(1)
        assert p.score == p.probabilities[p.label] == max(p.probabilities.values())
        assert 1 <= p.cost < 1.1 and not p.truncated
    assert model.predict([], budget=1.0) == []


def test_several_labels_or_none_are_those_above_one_half(untrained):
    names = ("red", "green", "blue")
    kind = "multi_label_classification"
    classify = untrained(10, num_hidden_layers=2, num_labels=3, labels=names, problem_type=kind)
    predictions = classify.predict([*TEXTS, *LONG.split(), ""])
    for p in predictions:
        assert p.label == tuple(name for name in names if p.probabilities[name] > 0.5)
        assert p.score == max(p.probabilities.values())
    assert len({p.label for p in predictions}) > 1


def test_a_regression_has_a_value_and_no_probabilities(untrained):
    (prediction,) = untrained(0, num_labels=1, problem_type="regression").predict(["a film"])
    assert prediction.label is prediction.probabilities is None
    assert np.isfinite(prediction.score)


def test_a_text_does_not_depend_on_its_neighbours_order_or_number(untrained):
    classify = untrained(6, PlannerConfig(), Calibration((0.4, 1.0), (0.25, -6.0)))
    words, random = VOCABULARY.split(), np.random.default_rng(0)
    texts = [" ".join(random.choice(words, 1 + i % 9)) for i in range(CHUNK_ROWS + 3)]
    many = classify.predict(texts, budget=0.4)
    few = classify.predict(texts[44::-1], budget=0.4)[::-1]
    for one, other in zip(many, few, strict=False):
        assert (one.label, one.layers, one.truncated) == (other.label, other.layers, False)
        np.testing.assert_allclose((one.score, one.cost), (other.score, other.cost), atol=1e-5)
    assert len({p.layers for p in few}) > 1


def test_top_k_runs_the_layers_that_the_budget_pays_for(model):
    predictions = model.predict(TEXTS, budget=0.7, plan_rule="top_k")
    # Of 3, the stem among them.
    assert all(len(p.layers) == 2 and p.layers[0] == 0 for p in predictions)


@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
def test_longer_texts_are_cut_as_in_evaluation_and_say_so(pairs, model, tiny_run, caplog):
    firsts, seconds = [*TEXTS, LONG, f"{LONG} {LONG}"], [LONG, "good", "a film", LONG]
    examples = Examples(firsts, seconds if pairs else None, None)
    _, config, params, tokenizer = load_run(str(tiny_run))
    split = tokenize(examples, tokenizer, 16)  # what the run was trained with
    execute, rule = make_executor("packed", config, params), resolve_rule(config, 0.7)
    wanted = predict(execute, rule, config, split, batch_size=8, max_seq_length=16)
    with caplog.at_level(logging.WARNING):
        predictions = model.predict(firsts, seconds if pairs else None, budget=0.7)
    cut = [True, False, True, True] if pairs else [False, False, True, True]
    assert [p.truncated for p in predictions] == cut
    assert f"{sum(cut)} of 4 texts were cut to 16 tokens" in caplog.text
    for p, mask, cost in zip(predictions, wanted.layer_mask, wanted.cost, strict=True):
        assert p.layers == tuple(np.flatnonzero(mask))
        assert p.cost == pytest.approx(float(cost), abs=1e-6)
    texts = list(zip(firsts, seconds, strict=True)) if pairs else firsts
    encoded = Encoder(tokenizer).encode(texts, 16, True)
    for name in ("token_ids", "type_ids", "offsets"):
        np.testing.assert_array_equal(getattr(encoded.split, name), getattr(split, name))


def test_the_longest_input_is_that_of_the_run_of_its_export_or_of_the_call(
    model, tiny_run, tmp_path
):
    assert model.max_seq_length == 16
    assert model.predict([LONG], max_length=32)[0].truncated is False
    elsewhere = copied(tiny_run, tmp_path / "run")
    (elsewhere / "train_config.json").unlink()
    assert Model.from_pretrained(str(elsewhere)).max_seq_length == 32
    (elsewhere / "export_config.json").write_text(json.dumps({"max_seq_length": 12}))
    assert Model.from_pretrained(str(elsewhere)).max_seq_length == 12
    with pytest.raises(
        UserError, match=r"2 of 4 texts .* 16 tokens: 1 \(19 tokens\), 3 \(19 tokens\)"
    ):
        model.predict(["a", LONG, "b", LONG], truncation=False)
    assert not model.predict([LONG], truncation=False, max_length=19)[0].truncated
    with pytest.raises(UserError, match="33 tokens, but the model has positions for 1 to 32"):
        model.predict(TEXTS, max_length=33)
    with pytest.raises(UserError, match="max_length 2 leaves no room"):
        model.predict(TEXTS, max_length=2)


def test_what_cannot_be_done_is_refused(model):
    with pytest.raises(UserError, match="2 texts, but 1 second segments"):
        model.predict(TEXTS, ["a dog"])
    with pytest.raises(UserError, match="must lie in"):
        model.predict(TEXTS, budget=0.0)


def test_a_tokenizer_that_names_no_token_types_serves_as_it_trains(model, tiny_run, tmp_path):
    folder = copied(tiny_run, tmp_path / "run")
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "model_input_names": ["input_ids", "attention_mask"]}))
    assert Model.from_pretrained(str(folder)).predict(TEXTS, TEXTS) == model.predict(TEXTS, TEXTS)


@pytest.mark.parametrize(
    "texts", [["dog", "a film"], ["a film"] * CHUNK_ROWS + ["cat", "dog", "cat"]]
)
def test_nan_is_no_answer_and_its_text_is_named(texts, tiny_run, tmp_path):
    folder = copied(tiny_run, tmp_path / "run")
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.word_embeddings.weight"][load_tokenizer(folder).vocab["dog"]] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"Input {texts.index('dog')} .* no answer.*NaN"):
        Model.from_pretrained(str(folder)).predict(texts)


IN_ANOTHER_PROCESS = """
import os, pickle, signal, sys, warnings
from dpbert_jax.errors import UserError
from dpbert_jax import Model

warnings.simplefilter("ignore")  # JAX's own, of the fork
with open(sys.argv[1], "rb") as file:
    model = pickle.load(file)
print(model.predict(["a film"]), flush=True)
child = os.fork()
if not child:
    signal.alarm(60)  # what hangs here ends without a word
    for attempt in (lambda: model.predict(["a film"]), lambda: Model.from_pretrained(sys.argv[2])):
        try:
            print(attempt(), flush=True)
        except UserError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_what_is_saved_is_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path / "served")
    again = Model.from_pretrained(tmp_path / "served")
    assert (again.config, again.max_seq_length) == (model.config, model.max_seq_length)
    assert again.predict([*TEXTS, LONG], budget=0.7) == model.predict([*TEXTS, LONG], budget=0.7)
    with pytest.raises(UserError, match="is in use"):
        model.save_pretrained(tmp_path / "served")
    nowhere = dataclasses.replace(model, folder=None)
    with pytest.raises(UserError, match="save it"):
        pickle.dumps(nowhere)


def test_what_is_warm_compiles_no_more(untrained, caplog):
    warm = untrained(0)
    warm.warm_up([3, 7])
    with pytest.raises(UserError, match=r"must lie in 1 \.\. 32"):
        warm.warm_up([33])
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        warm.predict(TEXTS[1:])
    assert "Compiling" not in caplog.text
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        warm.predict([LONG])
    assert "Compiling" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_another_process_unpickles_it_and_a_fork_is_refused(model, tiny_run, tmp_path):
    (tmp_path / "model").write_bytes(pickle.dumps(model))
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, tmp_path / "model", tiny_run]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    answer, *refusals = done.stdout.splitlines()
    assert answer == str(model.predict(["a film"]))
    assert len(refusals) == 2
    assert all("JAX does not work in a fork" in line for line in refusals)


@pytest.fixture(params=["alone", "planned"])
def dropping(request, tmp_path, tiny_folder, random_params):
    """A model some of whose tokens drop out, alone or beside a planner, saved and loaded."""
    encoder = dataclasses.replace(TINY, num_labels=2)
    calibration = Calibration((0.4, 0.6, 1.0), (0.5, 0.0, -9.0), None, (1e4, 10.0, -1e4))
    parts = (PlannerConfig(), calibration) if request.param == "planned" else ()
    config = DPBertConfig(encoder, *parts, token_selectors=True)
    selectors = initial_selectors(config, seed=0)
    random = np.random.default_rng(0)
    for selector, bias in zip(selectors.values(), (0, -1000), strict=True):  # some go, then all
        selector["narrow"] = {
            "kernel": random.normal(0, 30, selector["narrow"]["kernel"].shape).astype(np.float32),
            "bias": np.full(1, bias, np.float32),
        }
    params = {**random_params(config), **selectors}
    Model(config, params, load_tokenizer(tiny_folder), 16).save_pretrained(tmp_path / "m")
    return Model.from_pretrained(tmp_path / "m")


def test_a_model_that_drops_tokens_is_asked_as_any_other(dropping):
    texts = [LONG, *TEXTS]
    assert dropping.config.token_selectors and dropping.max_seq_length == 16
    whole = dataclasses.replace(dropping.config, token_selectors=False)
    without = dataclasses.replace(dropping, config=whole)
    alone = dropping.predict(texts)
    for p, plain in zip(alone, without.predict(texts), strict=True):
        assert p.layers == plain.layers == (0, 1, 2, 3)
        # At all of its budget a dial drops nothing, and selectors cost something.
        assert (p.cost < plain.cost) == (dropping.config.planner is None)
    many = dropping.predict(texts * CHUNK_ROWS)  # packed
    for p, other in zip(alone, many[:3], strict=True):
        assert (p.label, p.layers) == (other.label, other.layers)
        assert p.cost == pytest.approx(other.cost)
        assert p.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    if dropping.config.planner:
        for least, p in zip(dropping.predict(texts, budget=0.4), alone, strict=True):
            assert least.cost < 0.6 * p.cost  # of each text the first token alone is left


def test_a_model_that_drops_tokens_is_served_at_what_it_costs(dropping):
    backend = open_backend(str(dropping.folder), "auto", max_batch_size=4, max_padding=0.2)
    rows, _ = Encoder(dropping.tokenizer).encode(read_texts([LONG, *TEXTS]), 16, True)
    budgets = [0.4, 1.0, 0.5] if dropping.config.planner else [1.0] * 3
    found = backend.answer(rows, budgets)
    texts = [LONG, *TEXTS]
    said = [dropping.predict([text], budget=b)[0] for text, b in zip(texts, budgets, strict=True)]
    assert found.cost.tolist() == pytest.approx([p.cost for p in said])
    assert backend.answer(rows.take(np.array([1])), [1.0]).cost[0] == pytest.approx(said[1].cost)


def test_an_export_drops_them_too_and_is_served_at_that_cost(dropping, tmp_path):
    pytest.importorskip("onnxruntime")
    if not dropping.config.planner:
        with pytest.raises(UserError, match="drops tokens and has no planner"):
            dropping.export("stablehlo", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    dropping.export("onnx", tmp_path / "out")
    rows, _ = Encoder(dropping.tokenizer).encode(read_texts([LONG, *TEXTS]), 16, True)
    budgets = [0.4, 1.0, 0.5]
    one, other = (
        open_backend(str(folder), "auto", max_batch_size=4, max_padding=0.2).answer(rows, budgets)
        for folder in (dropping.folder, tmp_path / "out")
    )
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
    np.testing.assert_array_equal(one.layer_mask, other.layer_mask)
    np.testing.assert_allclose(one.cost, other.cost, rtol=1e-5)
