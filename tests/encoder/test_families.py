"""Every family against PyTorch's own: hidden states, logits, names, executors."""

import json
from dataclasses import replace
from functools import cache, partial

import golden_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dpbert_jax.config import Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import from_hf_dict, read_config, to_hf_dict
from dpbert_jax.encoder.attention import FARTHEST, distance_buckets
from dpbert_jax.encoder.embeddings import positions_of
from dpbert_jax.errors import UserError
from dpbert_jax.families import FAMILIES
from dpbert_jax.hub import load_params, save_weights
from dpbert_jax.hub.keys import NAMES, key_table
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.policies.dpbert import DPBert, init_params
from dpbert_jax.policies.rule import Rule

golden = cache(golden_models.golden)
every_family = pytest.mark.parametrize("family", golden_models.FAMILIES)
GRID = Calibration((0.4, 0.7, 1.0), (1.0, 0.0, -2.0))


@every_family
def test_every_hidden_state_and_logit_is_pytorchs(family, tmp_path):
    """Padded positions are held to it as well."""
    model = golden(family)
    folder = model.write(tmp_path)
    config = DPBertConfig(read_config(folder).encoder, PlannerConfig(stem_layers=0))
    params = load_params(folder, config, fresh=("planner",))
    apply = partial(DPBert(config).apply, {"params": params})

    @jax.jit
    def run(input_ids, attention_mask, token_type_ids):
        first = apply(input_ids, attention_mask, token_type_ids, method="stem")
        gates = jnp.ones((len(input_ids), config.num_gates))
        states = [first, *apply(first, attention_mask, gates, method="encode")]
        return jnp.stack(states), apply(states[-1], method="pool")[1]

    states, logits = run(**model.batch)
    np.testing.assert_allclose(states, model.hidden_states, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, model.logits, rtol=0, atol=1e-5)


@every_family
def test_executors_give_pytorchs_logits_and_agree_on_plans(family, tmp_path):
    model = golden(family)
    folder = model.write(tmp_path)
    config = DPBertConfig(read_config(folder).encoder, PlannerConfig(min_budget=0.3), GRID)
    params = load_params(folder, config, fresh=("planner",))
    every, some = resolve_rule(config, 1.0), Rule(0.6, -np.inf, 1)
    wanted = make_executor("masked", config, params)(model.batch, some)
    assert 0 < wanted.layer_mask.sum() < wanted.layer_mask.size
    for name in ("cond", "chunked", "packed"):
        execute = make_executor(name, config, params)
        logits = execute(model.batch, every).logits
        np.testing.assert_allclose(logits, model.logits, rtol=0, atol=1e-5)
        planned = execute(model.batch, some)
        np.testing.assert_allclose(planned.logits, wanted.logits, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(planned.layer_mask, wanted.layer_mask)
    # A row's answer does not depend on the rows beside it, nor on how far it is padded.
    length = int(model.batch["attention_mask"][1].sum())
    alone = {key: value[1:2, :length] for key, value in model.batch.items()}
    answer = make_executor("cond", config, params)(alone, some)
    np.testing.assert_allclose(answer.logits[0], wanted.logits[1], rtol=0, atol=1e-4)


@every_family
def test_a_saved_model_has_pytorchs_names_and_values(family, tmp_path):
    model = golden(family)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    folder = model.write(tmp_path / "theirs")
    config = read_config(folder)
    save_weights(tmp_path / "ours", config, load_params(folder, config))
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    assert set(saved) == set(model.weights)
    for name, value in model.weights.items():
        np.testing.assert_array_equal(saved[name], value)
    assert read_config(tmp_path / "ours") == config
    theirs, ours = json.loads(model.config), to_hf_dict(config)
    for key in ours.keys() & theirs.keys() - {"architectures", "problem_type"}:
        assert ours[key] == theirs[key], key


@every_family
def test_checkpoints_of_the_bare_encoder_load(family, tmp_path):
    model = golden(family)
    prefix = NAMES[family].prefix

    def bare(name):
        return name.removeprefix(f"{prefix}.")

    folder = model.write(tmp_path, bare)
    config = read_config(folder)
    loaded = load_params(folder, config, fresh=("head",))
    (tmp_path / "whole").mkdir()
    whole = load_params(model.write(tmp_path / "whole"), config)
    assert set(loaded) == set(whole)
    for name in set(whole) - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, loaded[name], whole[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_cover_every_parameter_once_and_configs_survive(family):
    encoder = from_hf_dict({"model_type": family, "num_labels": 3}, "here").encoder
    small = replace(encoder, num_hidden_layers=3)
    config = DPBertConfig(small, PlannerConfig(), GRID)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    found = {tuple(key.key for key in path): leaf.shape for path, leaf in paths}
    table = key_table(config)
    assert {entry.path: entry.shape for entry in table} == found
    assert len({entry.hf for entry in table}) == len(table)
    assert from_hf_dict(to_hf_dict(config), "here") == config


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    """What a config.json leaves out is what their class would take."""
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, f"{FAMILIES[family].classes}Config")()
    theirs = json.loads(made.to_json_string(use_diff=False))
    ours = from_hf_dict({"model_type": family}, "here")
    left_out = {"architectures", "position_embedding_type", "problem_type", "dpbert"}
    for key, value in to_hf_dict(ours).items():
        if key not in left_out and key in theirs:
            assert value == theirs[key], key


def test_a_family_that_is_not_supported_is_refused_with_those_that_are():
    with pytest.raises(UserError) as error:
        from_hf_dict({"model_type": "deberta-v2"}, "here")
    assert all(name in str(error.value) for name in ("'deberta-v2'", *FAMILIES))


def test_positions_are_counted_over_tokens_and_the_longest_input_leaves_room():
    encoder = from_hf_dict({"model_type": "roberta", "max_position_embeddings": 14}, "x").encoder
    ids = np.array([[0, 7, 8, 2, 1, 1], [0, 1, 9, 2, 1, 1]])
    for array in (ids, jnp.asarray(ids)):
        positions = positions_of(encoder, array)
        np.testing.assert_array_equal(positions, [[2, 3, 4, 5, 1, 1], [2, 1, 3, 4, 1, 1]])
    assert encoder.longest_input == 12
    longest = positions_of(encoder, np.full((1, 12), 5))
    assert longest.max() == 13


def test_distances_fall_in_the_published_buckets():
    """Those of `MPNetEncoder.relative_position_bucket`, by hand at the borders."""
    encoder = from_hf_dict({"model_type": "mpnet"}, "x").encoder
    buckets = distance_buckets(encoder)
    by_distance = {n: int(buckets[n + FARTHEST]) for n in range(-FARTHEST, FARTHEST + 1)}
    assert [by_distance[n] for n in (0, 1, 7, 8, 11, 12, 15, 16, 22, 23)] == [
        *(0, 1, 7, 8, 8, 9, 9, 10, 10, 11)
    ]
    assert (by_distance[127], by_distance[128]) == (15, 15)
    assert all(by_distance[-n] == by_distance[n] + 16 for n in range(1, FARTHEST + 1))
