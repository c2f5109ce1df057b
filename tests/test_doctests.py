"""The examples in public docstrings, run."""

import dataclasses
import doctest
import importlib

import pytest
from transformers import BertTokenizer

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.hub import save_folder

MODULES = ("model", "data.batches", "policies.rule", "policies.gates", "families", "config_file")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, random_params):
    """A run's folder as the examples name it: two classes, a planner with thresholds."""
    place = tmp_path_factory.mktemp("examples")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "."]
    encoder = dataclasses.replace(TINY, labels=("negative", "positive"))
    config = DPBertConfig(encoder, PlannerConfig(), Calibration((0.4, 1.0), (0.5, -6.0)))
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    save_folder(place / "runs" / "sst2", config, random_params(config), tokenizer)
    return place


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    module = importlib.import_module(f"dpbert_jax.{name}")
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed
