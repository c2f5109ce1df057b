"""`dpbert compress`: from a run to a folder that everything loads, and what it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.compress.arguments import CompressArguments
from dpbert_jax.compress.command import compress
from dpbert_jax.compress.heal import straight_through
from dpbert_jax.encoder.word_table import round_rows, table_bytes
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.report import evaluate_run
from dpbert_jax.hub import load_run
from dpbert_jax.integrity import verify
from dpbert_jax.model import Model
from dpbert_jax.run_folder import HELD_OUT
from dpbert_jax.study.fit import open_run
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.run import train

TABLE = 64 * 16 * 4  # bytes of the tiny model's word embeddings in float32


@pytest.fixture(scope="module")
def healed(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed") / "healed"
    return compress(CompressArguments(str(tiny_run), str(folder), 0.5, num_train_epochs=1.0))


def test_the_folder_is_a_models_like_any_other(healed, tiny_run):
    verify(healed)
    run, model = Model.from_pretrained(tiny_run), Model.from_pretrained(healed)
    compression = model.config.encoder.compression
    assert compression and sum(compression.sizes) == 64
    assert table_bytes(model.config.encoder) <= TABLE / 2
    assert model.max_seq_length == run.max_seq_length
    assert model.config.calibration.inputs == HELD_OUT
    assert len(model.predict(["the cat sat", "a good film"], budget=0.7)) == 2
    planner, before = (each.params["planner"] for each in (model, run))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, planner, before)))
    changed = jax.tree.map(np.array_equal, model.params["layer_0"], run.params["layer_0"])
    assert not all(jax.tree.leaves(changed))
    (row,) = evaluate_run(EvalArguments(str(healed), budget=[0.7]))
    assert row["examples"] == 20


def test_healing_brings_the_answers_back_to_the_uncompressed_models(healed, tiny_run, tmp_path):
    """On the training rows, which it learns from."""
    run = open_run(str(tiny_run))
    arguments = CompressArguments(str(tiny_run), str(tmp_path / "raw"), 0.5, num_train_epochs=0.0)
    raw = Model.from_pretrained(compress(arguments))
    rows = run.rows.kept
    texts = [
        run.model.tokenizer.decode(rows.take(np.array([i])).token_ids[1:-1]) for i in range(24)
    ]

    def logits(model):
        return np.array([list(row.probabilities.values()) for row in model.predict(texts)])

    wanted = logits(run.model)
    after = np.abs(logits(Model.from_pretrained(healed)) - wanted).mean()
    assert after <= np.abs(logits(raw) - wanted).mean() + 0.05


def test_without_healing_all_but_the_table_stays(tiny_run, tmp_path, capsys):
    arguments = CompressArguments(str(tiny_run), str(tmp_path / "out"), 1500.0, clusters=1)
    arguments = dataclasses.replace(arguments, num_train_epochs=0.0)
    model, run = Model.from_pretrained(compress(arguments)), Model.from_pretrained(tiny_run)
    assert len(model.config.encoder.compression.sizes) == 1
    assert model.config.calibration == run.config.calibration
    rest = {name for name in run.params if name != "embeddings"}
    same = jax.tree.map(
        np.array_equal, *({name: each.params[name] for name in rest} for each in (model, run))
    )
    assert all(jax.tree.leaves(same))
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["bytes"] == table_bytes(model.config.encoder) <= 1500
    assert (printed["float32_bytes"], printed["num_train_epochs"]) == (TABLE, 0.0)


def test_tokens_of_a_text_stay_most_exact(tiny_run, tmp_path):
    folders = {}
    for name, words in (("one", "dog ran mat\n" * 9), ("other", "film walk sun\n" * 9)):
        (tmp_path / f"{name}.txt").write_text(words)
        arguments = CompressArguments(
            str(tiny_run),
            str(tmp_path / name),
            1200.0,
            text_file=str(tmp_path / f"{name}.txt"),
            clusters=2,
            num_train_epochs=0.0,
        )
        folders[name] = load_run(str(compress(arguments)))
    for name, words in (("one", "dog ran mat"), ("other", "film walk sun")):
        _, config, params, tokenizer = folders[name]
        ids = tokenizer(words, add_special_tokens=False)["input_ids"]
        place = params["embeddings"]["word_embeddings"]["place"][ids]
        assert (place < config.encoder.compression.sizes[0]).all()


def test_what_is_trained_is_what_int8_holds():
    values = jax.random.normal(jax.random.key(0), (6, 5))
    whole, scale = round_rows(np.asarray(values))
    np.testing.assert_allclose(straight_through(values), whole * scale[:, None], atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(3 * straight_through(x)))(values)
    np.testing.assert_array_equal(gradient, jnp.full_like(values, 3))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"embedding_bytes": 0.0}, "--embedding_bytes is 0.0, but must be above 0"),
        ({"clusters": 0}, "--clusters is 0, but must be at least 1"),
        ({"num_train_epochs": -1.0}, "--num_train_epochs is -1.0"),
        ({"embedding_bytes": 300.0}, "300 bytes are too few"),
        ({"embedding_bytes": 2000.0, "clusters": 65}, "--clusters is 65, but there are 64 tokens"),
        ({"text_file": "/nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_what_cannot_be_is_one_sentence(flags, words, tiny_run, tmp_path):
    with pytest.raises(UserError, match=words):
        compress(CompressArguments(str(tiny_run), str(tmp_path / "out"), **flags))
    assert not (tmp_path / "out").exists()


def test_what_has_no_planner_or_is_compressed_is_refused(healed, tiny_run, run_flags, tmp_path):
    for folder, words in ((tiny_run / "teacher", "no planner"), (healed, "the run that it was")):
        with pytest.raises(UserError, match=words):
            compress(CompressArguments(str(folder), str(tmp_path / "out")))
    with pytest.raises(UserError, match="in use"):
        compress(CompressArguments(str(tiny_run), str(healed)))
    flags = {**run_flags, "model_name_or_path": str(healed), "output_dir": str(tmp_path / "run")}
    with pytest.raises(UserError, match="has compressed embeddings, which cannot be trained"):
        train(TrainArguments(**flags))
