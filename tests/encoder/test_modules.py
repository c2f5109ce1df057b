"""BERT against PyTorch's, and dropout that belongs to a row."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.encoder.attention import attention_bias
from dpbert_jax.encoder.modules import Layer
from dpbert_jax.encoder.operations import dropout, fold_rows
from dpbert_jax.hub import load_params, load_tokenizer, resolve_folder
from dpbert_jax.policies.dpbert import DPBert

GOLDEN = Path(__file__).parents[1] / "golden" / "bert_tiny.npz"
SENTENCES = [
    "The plan is complete before the first planned layer runs.",
    "Cheap.",
    "A gripping film, badly lit; naïve in its politics, and forty minutes too long - yet I wept.",
    "Der schnelle braune Fuchs springt über den faulen Hund! 42 %",
]


def todays_names(name):
    return name


def bare_names(name):
    """The names in a checkpoint of `BertModel`."""
    return name.removeprefix("bert.")


def old_names(name):
    """The names that TensorFlow checkpoints left behind."""
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return name.replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def golden_folder(golden, folder, rename=todays_names):
    kinds = [key.removeprefix("weight/") for key in golden if key.startswith("weight/")]
    weights = {rename(name): golden[f"weight/{name}"] for name in kinds}
    save_file(weights, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(str(golden["config"]), encoding="utf-8")
    return folder


def every_state(config, params, batch):
    """Embeddings output, the state after each layer, pooled output, logits; by the stages."""
    model = DPBert(config)

    @jax.jit
    def run(params, input_ids, attention_mask, token_type_ids):
        variables = {"params": params}
        first = model.apply(variables, input_ids, attention_mask, token_type_ids, method="stem")
        gates = jnp.ones((first.shape[0], config.num_gates))
        rest = model.apply(variables, first, attention_mask, gates, method="encode")
        states = [first, *rest]
        return jnp.stack(states), *model.apply(variables, states[-1], method="pool")

    names = ("input_ids", "attention_mask", "token_type_ids")
    return run(params, *(np.asarray(batch[name], np.int32) for name in names))


def test_every_hidden_state_is_pytorchs(golden, tmp_path):
    folder = golden_folder(golden, tmp_path)
    config = DPBertConfig(read_config(folder).encoder, PlannerConfig(stem_layers=0))
    params = load_params(folder, config, fresh=("planner",))
    batch = {name: golden[f"input/{name}"] for name in ("input_ids", "attention_mask")}
    batch["token_type_ids"] = golden["input/token_type_ids"]
    states, pooled, logits = every_state(config, params, batch)
    # Padded positions are held to it as well.
    np.testing.assert_allclose(states, golden["hidden_states"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(pooled, golden["pooled"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-5)


def test_dense_config_gives_pytorchs_logits(golden, tmp_path):
    config = read_config(golden_folder(golden, tmp_path))
    params = load_params(tmp_path, config)
    inputs = (golden[f"input/{n}"] for n in ("input_ids", "attention_mask", "token_type_ids"))
    logits = jax.jit(DPBert(config).apply)({"params": params}, *inputs, jnp.ones((4, 0)))
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rename", [bare_names, old_names])
def test_names_of_other_checkpoints_load_the_same(golden, tmp_path, rename):
    folders = tmp_path / "today", tmp_path / "other"
    for folder, names in zip(folders, (todays_names, rename), strict=True):
        folder.mkdir()
        golden_folder(golden, folder, names)
    config = read_config(folders[0])
    today, other = (load_params(folder, config) for folder in folders)
    jax.tree.map(np.testing.assert_array_equal, today, other)


def test_minilm_is_pytorchs():
    """States reach 10, and differ by 3e-6 at most."""
    torch = pytest.importorskip("torch")
    from transformers import BertModel

    folder = resolve_folder("minilm")
    tokens = load_tokenizer(folder)(SENTENCES, padding=True, return_tensors="np")
    reference = BertModel.from_pretrained(str(folder), attn_implementation="eager").eval()
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in tokens.items()}
        wanted = reference(**tensors, output_hidden_states=True)
    config = DPBertConfig(read_config(folder).encoder, PlannerConfig(stem_layers=0))
    params = load_params(folder, config, fresh=("planner", "head"))
    states, pooled, _ = every_state(config, params, tokens)
    real = np.asarray(tokens["attention_mask"], bool)
    for ours, theirs in zip(states, wanted.hidden_states, strict=True):
        ours, theirs = np.asarray(ours)[real], theirs.numpy()[real]
        print(f"largest difference {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.1f}")
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    print(f"pooled: {np.abs(np.asarray(pooled) - wanted.pooler_output.numpy()).max():.1e}")
    np.testing.assert_allclose(pooled, wanted.pooler_output.numpy(), rtol=0, atol=1e-5)


def test_gelu_is_exact_erf_and_the_other_activations_differ(random_params):
    states = jax.random.normal(jax.random.key(0), (1, 4, 16))
    bias = attention_bias(jnp.ones((1, 4), jnp.int32))
    params = {"params": random_params(DPBertConfig(TINY))["layer_0"]}
    outputs = {}
    for act in ("gelu", "gelu_new", "relu"):
        config = replace(TINY, hidden_act=act)
        outputs[act] = np.asarray(Layer(config).apply(params, states, bias))
    assert 0 < np.abs(outputs["gelu"] - outputs["gelu_new"]).max() < 1e-2
    assert np.abs(outputs["gelu"] - outputs["relu"]).max() > 1e-2


ROWS = jax.random.split(jax.random.key(3), 6)
NOISY = jax.random.normal(jax.random.key(4), (6, 5, 7))  # 35: not 4-aligned


def test_dropout_of_a_row_belongs_to_its_key_alone():
    whole = dropout(NOISY, 0.4, ROWS, 1)
    order = np.array([4, 1, 5])
    np.testing.assert_array_equal(dropout(NOISY[order], 0.4, ROWS[order], 1), whole[order])
    np.testing.assert_array_equal(dropout(NOISY[2:3], 0.4, ROWS[2:3], 1), whole[2:3])


def test_dropout_differs_between_keys_sites_and_folds():
    ones = jnp.ones((6, 400))
    first = np.asarray(dropout(ones, 0.4, ROWS, 0))
    assert len(np.unique(first, axis=0)) == 6
    assert (first != dropout(ones, 0.4, ROWS, 1)).any(axis=1).all()
    assert (first != dropout(ones, 0.4, fold_rows(ROWS, 0), 0)).any(axis=1).all()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_drops_the_share(rate):
    dropped = np.asarray(dropout(jnp.ones((6, 50_000)), rate, ROWS, 2))
    assert np.abs(dropped.mean() - 1) < 0.01
    assert np.abs((dropped == 0).mean() - round(rate * 256) / 256) < 0.005
    assert len(np.unique(dropped)) == 2


@pytest.mark.parametrize(("rate", "keys"), [(0.5, None), (0.0, ROWS), (0.5, fold_rows(None, 1))])
def test_dropout_without_keys_or_rate_is_identity(rate, keys):
    assert dropout(NOISY, rate, keys, 0) is NOISY


def test_a_rows_dropout_in_the_model_does_not_depend_on_its_batch(random_params, random_batch):
    config = DPBertConfig(replace(TINY, num_hidden_layers=1))
    model, batch = DPBert(config), random_batch(6)

    @jax.jit
    def logits(params, batch, keys):
        states = model.apply({"params": params}, **batch, dropout_keys=keys, method="stem")
        return model.apply({"params": params}, states, keys, method="pool")[1]

    params, order = random_params(config), np.array([3, 0, 5])
    part = {name: value[order] for name, value in batch.items()}
    whole = logits(params, batch, ROWS)
    np.testing.assert_allclose(logits(params, part, ROWS[order]), whole[order], atol=1e-5)
    assert np.abs(whole - logits(params, batch, fold_rows(ROWS, 9))).max() > 1e-3


def test_attention_bias_hides_padding_only():
    bias = attention_bias(jnp.array([[1, 1, 0]]))
    assert bias.shape == (1, 1, 1, 3)
    assert bias[0, 0, 0, :2].tolist() == [0, 0]
    assert float(bias[0, 0, 0, 2]) == np.finfo(np.float32).min
