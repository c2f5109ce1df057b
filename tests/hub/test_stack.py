"""The derived model: its layers are the source's, over and over, and nothing else changes."""

import dataclasses

import jax
import numpy as np
import pytest
from transformers import BertTokenizer

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_run, save_folder
from dpbert_jax.hub.stack import StackArguments, stack


@pytest.fixture
def save(tmp_path, random_params):
    def made(config):
        params = random_params(config)
        tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3})
        save_folder(tmp_path / "source", config, params, tokenizer)
        return str(tmp_path / "source"), params

    return made


@pytest.mark.parametrize("times", [1, 3])
def test_the_layers_are_repeated_in_order(times, save, tmp_path):
    config = DPBertConfig(dataclasses.replace(TINY, labels=("no", "yes")))
    source, params = save(config)
    stack(StackArguments(source, str(tmp_path / "deep"), times))
    _, deep_config, deep, _ = load_run(str(tmp_path / "deep"))
    layers = TINY.num_hidden_layers
    assert deep_config.encoder == dataclasses.replace(
        config.encoder, num_hidden_layers=times * layers
    )
    assert set(deep) - set(params) == {f"layer_{i}" for i in range(layers, times * layers)}
    for name, value in deep.items():
        number = name.removeprefix("layer_")
        origin = f"layer_{int(number) % layers}" if number.isdigit() else name
        jax.tree.map(np.testing.assert_array_equal, value, params[origin])


def test_what_cannot_be_stacked_is_refused(save, tmp_path):
    source, _ = save(DPBertConfig(TINY, PlannerConfig()))
    with pytest.raises(UserError, match="has a planner"):
        stack(StackArguments(source, str(tmp_path / "deep")))
    source, _ = save(DPBertConfig(TINY))
    with pytest.raises(UserError, match="is in use"):
        stack(StackArguments(source, source))
    with pytest.raises(UserError, match="cannot be made"):
        stack(StackArguments(source, f"{source}/config.json/deep"))
    with pytest.raises(UserError, match="--times is 0"):
        StackArguments(source, str(tmp_path / "deep"), 0)
