"""The compressed word table: what is looked up is the product of the factors, however it is run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpbert_jax.compress.factorise import factorise, quantise
from dpbert_jax.config import (
    TINY,
    Calibration,
    DPBertConfig,
    EmbeddingCompression,
    EncoderConfig,
    PlannerConfig,
)
from dpbert_jax.config_file import from_hf_dict, to_hf_dict
from dpbert_jax.encoder.word_table import expanded, look_up, round_rows, table_bytes
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_params, load_tokenizer, save_folder
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.model import Model
from dpbert_jax.policies.dpbert import init_params

PLAIN = DPBertConfig(TINY, PlannerConfig(), Calibration((0.4, 1.0), (0.25, -6.0)))


@pytest.fixture(scope="module")
def compressed(random_params):
    """Config and parameters of a tiny model, and the table that its factors multiply to."""
    params = random_params(PLAIN)
    table = np.asarray(params["embeddings"]["word_embeddings"]["embedding"])
    factors = factorise(TINY, table, np.arange(64, 0, -1.0), 2600, 3)
    words = quantise(factors)
    parts = []
    for number in range(3):
        cluster = words[f"cluster_{number}"]
        rows = cluster["rows"] * cluster["row_scale"][:, None]
        parts.append(rows @ (cluster["basis"] * cluster["basis_scale"][:, None]))
    encoder = dataclasses.replace(TINY, compression=factors.compression)
    params = {**params, "embeddings": {**params["embeddings"], "word_embeddings": words}}
    return (
        dataclasses.replace(PLAIN, encoder=encoder),
        params,
        np.concatenate(parts)[words["place"]],
    )


def test_a_look_up_is_the_product_of_the_factors(compressed):
    config, params, table = compressed
    ids = jnp.arange(64, dtype=jnp.int32).reshape(4, 16)
    states = look_up(config.encoder.compression, params["embeddings"]["word_embeddings"], ids)
    np.testing.assert_allclose(states.reshape(64, -1), table, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["masked", "cond", "chunked", "packed"])
def test_executors_answer_as_with_the_whole_table(name, compressed, random_batch):
    config, params, table = compressed
    encoder, whole = expanded(config.encoder, params)
    np.testing.assert_allclose(
        whole["embeddings"]["word_embeddings"]["embedding"], table, rtol=0, atol=1e-6
    )
    assert expanded(encoder, whole) == (encoder, whole)
    batch = random_batch(7, length=16)
    plain = dataclasses.replace(config, encoder=encoder)
    for budget in (0.5, 1.0):
        rule = resolve_rule(config, budget)
        wanted = make_executor("masked", plain, whole)(batch, rule)
        answer = make_executor(name, config, params)(batch, rule)
        np.testing.assert_array_equal(answer.layer_mask, wanted.layer_mask)
        np.testing.assert_allclose(answer.logits, wanted.logits, rtol=0, atol=1e-5)


def test_a_saved_model_loads_bitwise(compressed, tiny_folder, tmp_path):
    config, params, _ = compressed
    save_folder(tmp_path, config, params, load_tokenizer(tiny_folder))
    model = Model.from_pretrained(tmp_path)
    assert model.config == config
    same = jax.tree.map(np.array_equal, model.params, params)
    assert all(jax.tree.leaves(same))
    types = {str(leaf.dtype) for leaf in jax.tree.leaves(model.params["embeddings"])}
    assert types == {"int8", "int32", "float32"}
    assert len(model.predict(["a good film", "bad"], budget=0.5)) == 2


def test_a_table_of_another_type_is_refused(compressed, tiny_folder, tmp_path):
    config, params, _ = compressed
    save_folder(tmp_path, config, params, load_tokenizer(tiny_folder))
    (tmp_path / "SHA256SUMS").unlink()
    tensors = load_file(tmp_path / "model.safetensors")
    key = "bert.embeddings.word_embeddings.cluster_0.rows"
    tensors[key] = tensors[key].astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"cluster_0.rows has type float32, expected int8"):
        load_params(tmp_path, config)


def test_parameters_have_the_shapes_that_are_counted(compressed):
    config, params, _ = compressed
    made = jax.eval_shape(lambda: init_params(config, 0))["embeddings"]["word_embeddings"]
    words = params["embeddings"]["word_embeddings"]
    jax.tree.map(lambda ours, leaf: np.testing.assert_equal(leaf.shape, ours.shape), words, made)
    jax.tree.map(lambda ours, leaf: np.testing.assert_equal(leaf.dtype, ours.dtype), words, made)
    assert table_bytes(config.encoder) == sum(leaf.nbytes for leaf in jax.tree.leaves(words))


def test_the_config_round_trips(compressed):
    config = compressed[0]
    assert from_hf_dict(to_hf_dict(config), "config.json") == config


def test_rounded_rows_are_within_half_a_step():
    values = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    values[3] = 0
    whole, scale = round_rows(values)
    assert whole.dtype == np.int8 and np.abs(whole).max() == 127
    assert (np.abs(whole * scale[:, None] - values) <= scale[:, None] * 0.5001).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EmbeddingCompression((3,), (1, 2)), "size and the rank of each cluster"),
        (lambda: EmbeddingCompression((), ()), "size and the rank of each cluster"),
        (lambda: EmbeddingCompression((3, 0), (1, 1)), "none below 1"),
        (
            lambda: EncoderConfig(compression=EmbeddingCompression((3,), (1,))),
            "3 tokens, but",
        ),
        (
            lambda: DPBertConfig(
                dataclasses.replace(TINY, compression=EmbeddingCompression((64,), (2,)))
            ),
            "beside a planner",
        ),
    ],
)
def test_what_fits_no_table_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
