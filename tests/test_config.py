"""Configurations: written and read back, Hugging Face's keys, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpbert_jax.config import (
    BERT_BASE,
    PRESETS,
    TINY,
    Calibration,
    DPBertConfig,
    EncoderConfig,
    PlannerConfig,
)
from dpbert_jax.config_file import from_hf_dict, read_config, to_hf_dict, write_config
from dpbert_jax.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "bert_tiny.npz"
GRID = Calibration((0.4, 0.7, 1.0), (1.5, 0.1, -6.0), "mrpc test")
CONFIGS = {
    "dense": DPBertConfig(TINY),
    "planned": DPBertConfig(TINY, PlannerConfig(stem_layers=2, hidden_size=8, min_budget=0.5)),
    "calibrated": DPBertConfig(TINY, PlannerConfig(), GRID),
    "labels": DPBertConfig(replace(TINY, num_labels=3, labels=("no", "maybe", "yes"))),
    "eleven": DPBertConfig(replace(TINY, num_labels=11, labels=tuple("abcdefghijk"))),
    "regression": DPBertConfig(replace(TINY, num_labels=1, problem_type="regression")),
    "labels of a row": DPBertConfig(
        replace(TINY, num_labels=3, problem_type="multi_label_classification")
    ),
    "other": DPBertConfig(replace(BERT_BASE, hidden_act="relu", classifier_dropout=0.3)),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_is_written_is_read_back(config, tmp_path):
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    assert from_hf_dict(to_hf_dict(config), "here") == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_dense_configs_of_their_own(name):
    config = DPBertConfig(PRESETS[name])
    assert (config.num_gates, config.planner) == (0, None)
    assert config.stem_layers == PRESETS[name].num_hidden_layers


def test_a_config_of_transformers_is_read():
    with np.load(GOLDEN) as golden:
        values = json.loads(str(golden["config"]))
    assert from_hf_dict(values, "here").encoder == EncoderConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
        num_labels=3,
    )


def test_transformers_reads_ours_and_writes_it_back(tmp_path):
    from transformers import BertConfig as TheirConfig

    config = CONFIGS["labels"]
    write_config(config, tmp_path)
    theirs = TheirConfig.from_pretrained(str(tmp_path))
    assert theirs.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert theirs.num_hidden_layers == 4
    assert from_hf_dict(theirs.to_dict(), "here") == config


def test_stem_and_gates_add_up_to_the_layers():
    for stem in range(4):
        config = DPBertConfig(TINY, PlannerConfig(stem_layers=stem))
        assert (config.stem_layers, config.num_gates) == (stem, 4 - stem)


@pytest.mark.parametrize("stem", [-1, 4, 5])
def test_a_stem_that_leaves_nothing_to_plan_is_refused(stem):
    with pytest.raises(UserError, match=rf"stem_layers is {stem}, but must lie in 0 \.\. 3"):
        DPBertConfig(TINY, PlannerConfig(stem_layers=stem))


def test_impossible_shapes_and_activations_are_refused():
    with pytest.raises(UserError, match="hidden_size 16 is not a multiple"):
        replace(TINY, num_attention_heads=3)
    with pytest.raises(UserError, match=r"hidden_act 'swish' is not one of \['gelu'"):
        replace(TINY, hidden_act="swish")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model_type": "t5"},
            "here: model_type is 't5', but must be one of bert, roberta",
        ),
        ({"model_type": None}, "here: model_type is None"),
        ({"position_embedding_type": "relative_key"}, "here: only absolute position"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple"),
        ({"hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"dpbert": {}}, "here is not a configuration of this library: 'planner'"),
        ({"dpbert": {"planner": {"depth": 3}}}, "here is not a configuration of this library"),
        ({"dpbert": {"planner": {}, "calibration": {"x": [1]}}}, "here is not a configuration"),
        ({"dpbert": "yes"}, "here is not a configuration"),
        ({"dpbert": {"planner": {"stem_layers": 9}}}, "stem_layers is 9"),
    ],
)
def test_a_dict_that_is_no_config_is_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        from_hf_dict({**to_hf_dict(DPBertConfig(TINY)), **change}, "here")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"has no config\.json: it is not the folder of a model"),
        (b'{"model_type": ', r"config\.json is not valid JSON"),
        (b"\xff\xfe\x00", r"config\.json is not valid JSON"),
        (b"[1, 2]", r"config\.json holds no JSON object"),
    ],
)
def test_files_that_are_no_config_are_refused(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_config(tmp_path)


def test_generic_label_names_are_no_labels():
    config = DPBertConfig(replace(TINY, num_labels=3))
    assert to_hf_dict(config)["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert from_hf_dict(to_hf_dict(config), "here").encoder.labels is None
