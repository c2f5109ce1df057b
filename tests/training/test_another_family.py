"""A whole run of a family that differs from BERT in nearly everything: MPNet."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from transformers import MPNetTokenizer

from dpbert_jax import Model
from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.hub import load_params, save_folder
from dpbert_jax.policies.dpbert import init_params

pytestmark = pytest.mark.slow  # a whole run: minutes where nothing is compiled yet
WORDS = [
    "<s>",
    "<pad>",
    "</s>",
    "[UNK]",
    "<mask>",
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "in",
    "sun",
    "and",
    "it",
    "was",
    "good",
    "bad",
]


@pytest.fixture(scope="module")
def run(trained, run_flags, tmp_path_factory):
    source = tmp_path_factory.mktemp("pretrained") / "mpnet"
    encoder = dataclasses.replace(
        TINY, model_type="mpnet", num_hidden_layers=3, type_vocab_size=1, pad_token_id=1
    )
    tokenizer = MPNetTokenizer(vocab={word: number for number, word in enumerate(WORDS)})
    config = DPBertConfig(encoder)
    save_folder(source, config, init_params(config, 0), tokenizer)
    flags = {**run_flags, "model_name_or_path": str(source), "num_train_epochs": 1.0}
    return source, trained(tmp_path_factory.mktemp("runs") / "mpnet", flags)


def test_every_part_is_trained_and_the_run_answers(run):
    source, folder = run
    config = read_config(folder)
    assert config.encoder.model_type == "mpnet" and config.planner and config.calibration
    before = load_params(source, DPBertConfig(config.encoder), fresh=("head",))
    after = load_params(folder, config)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, {n: after[n] for n in before})
    assert all(jax.tree.leaves(moved))
    model = Model.from_pretrained(folder)
    texts = ["the cat sat in the sun", "good", "it was bad and the dog ran on"]
    for budget in (1.0, 0.6):
        together = model.predict(texts, budget=budget)
        alone = [model.predict([text], budget=budget)[0] for text in texts]
        for one, other in zip(together, alone, strict=True):
            assert one.layers == other.layers and one.score == pytest.approx(other.score, abs=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_run_is_a_dense_model_of_transformers_own_class(run):
    import torch
    from transformers import AutoTokenizer, MPNetForSequenceClassification

    _, folder = run
    theirs = MPNetForSequenceClassification.from_pretrained(folder).eval()
    texts = ["the cat sat in the sun", "good"]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        wanted = theirs(**batch).logits.softmax(dim=-1).numpy()
    ours = Model.from_pretrained(folder).predict(texts)
    found = [list((answer.probabilities or {}).values()) for answer in ours]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
