"""TR-BERT executed: what is dropped is gone, alone and beside plans, whatever the executor."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.encoder.flops import layer_flops
from dpbert_jax.errors import UserError
from dpbert_jax.inference import Rule, make_executor
from dpbert_jax.inference.in_graph import run_shortened
from dpbert_jax.inference.tiles import narrower_widths
from dpbert_jax.policies.early_exit import deebert
from dpbert_jax.policies.planner import planner_flops
from dpbert_jax.policies.tokens import SELECTOR_SIZE, TrBert, selector_layers, trbert
from dpbert_jax.study.trbert import initial_selectors

ENCODER = dataclasses.replace(TINY, num_hidden_layers=4)
CONFIGS = {
    "alone": DPBertConfig(ENCODER),
    "planned": DPBertConfig(ENCODER, PlannerConfig()),
}
RULE = Rule(1.0, 0.0, 2)


@pytest.fixture(scope="module", params=CONFIGS)
def about(request, random_params):
    """A config, and parameters whose selectors tell tokens apart."""
    config, random = CONFIGS[request.param], np.random.default_rng(0)
    selectors = initial_selectors(config, seed=0)
    for number, selector in enumerate(selectors.values()):
        selector["narrow"]["kernel"] = 30 * random.normal(size=(SELECTOR_SIZE, 1))
        selector["narrow"]["bias"] = np.full(1, 0.5 * number)
    return config, {**random_params(config), **selectors}


def test_executors_drop_the_same_tokens_and_agree(about, random_batch):
    config, params = about
    batch = random_batch(9)
    made = {
        name: make_executor(name, config, params, policy=trbert(config))(batch, RULE)
        for name in ("masked", "cond", "chunked", "packed")
    }
    wanted = made.pop("masked")
    tokens, lengths = np.asarray(wanted.tokens), batch["attention_mask"].sum(axis=1)
    assert selector_layers(config) == (1, 2)
    np.testing.assert_array_equal(tokens[:, 0], lengths)
    assert (np.diff(tokens, axis=1) <= 0).all() and (tokens >= 1).all()
    assert (tokens[:, 1] < lengths).any() and (tokens[:, 2] < tokens[:, 1]).any()
    for output in made.values():
        np.testing.assert_array_equal(output.tokens, tokens)
        np.testing.assert_array_equal(output.layer_mask, wanted.layer_mask)
        np.testing.assert_allclose(output.logits, wanted.logits, rtol=0, atol=1e-4)
    for row in range(9):
        one = {name: values[row : row + 1] for name, values in batch.items()}
        alone = make_executor("cond", config, params, policy=trbert(config))(one, RULE)
        np.testing.assert_allclose(alone.logits[0], wanted.logits[row], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(alone.tokens)[0], tokens[row])


def test_every_row_has_the_stay_threshold_of_its_rule(about, random_batch):
    config, params = about
    batch, stays = random_batch(6), np.float32([[-np.inf], [0], [0.4], [-0.4], [np.inf], [0]])
    each = RULE._replace(threshold=np.zeros((6, 1), np.float32), stay=stays)
    rows = np.arange(6)
    wanted = [
        make_executor("masked", config, params, policy=trbert(config))(
            {name: values[[row]] for name, values in batch.items()},
            RULE._replace(stay=float(stays[row, 0])),
        )
        for row in rows
    ]
    tokens = np.concatenate([output.tokens for output in wanted])
    assert (tokens[0] == tokens[0, 0]).all() and (tokens[4, 1:] == 1).all()
    for name in ("masked", "chunked", "packed"):
        made = make_executor(name, config, params, policy=trbert(config))(batch, each.of_rows(rows))
        np.testing.assert_array_equal(made.tokens, tokens)
        logits = np.concatenate([output.logits for output in wanted])
        np.testing.assert_allclose(made.logits, logits, rtol=0, atol=1e-4)


def test_dropping_nothing_changes_nothing(about, random_batch):
    """What drops nothing answers as the model without selectors, what drops some does not."""
    config, params = about
    execute = make_executor("masked", config, params, policy=trbert(config))
    batch = random_batch(6)
    first = execute(batch, RULE)
    kept = make_executor("masked", config, drop_nothing(params), policy=trbert(config))
    plain = make_executor("masked", config, params)(batch, RULE)
    np.testing.assert_allclose(kept(batch, RULE).logits, plain.logits, rtol=0, atol=1e-5)
    assert np.abs(np.asarray(first.logits - plain.logits)).max() > 1e-4


def drop_nothing(params):
    selectors = {
        name: {**part, "narrow": {**part["narrow"], "bias": np.full(1, 1e6)}}
        for name, part in params.items()
        if name.startswith("selector_")
    }
    return {**params, **selectors}


def test_layers_run_on_the_fewest_eighths_that_hold_what_is_left():
    seen = []

    def encode(states, bias, gates):
        seen.append(states.shape[2])
        return states + 1

    states, mask = jnp.zeros((3, 2, 16)), jnp.zeros((2, 16), jnp.int32)
    mask = mask.at[0, jnp.array([0, 3, 15])].set(1).at[1, jnp.array([0, 1, 2, 9, 12])].set(1)
    output = np.asarray(run_shortened(encode, states, jnp.ones((2, 1)), mask))
    assert sorted(seen) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert (output[:, np.asarray(mask) > 0] == 1).all() and output.sum() == 3 * 2 * 6


def test_short_rows_have_narrow_tiles():
    assert narrower_widths(512, 512) == [128, 256, 384, 512]
    assert narrower_widths(24, 64) == [16, 32, 64]
    assert narrower_widths(16, 16) == [16]


def test_forced_plans_are_run_and_their_tokens_dropped(about, random_batch):
    config, params = about
    batch, plan = random_batch(3), np.array([[1, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    for name in ("cond", "packed"):
        execute = make_executor(name, config, params, policy=trbert(config))
        np.testing.assert_array_equal(execute(batch, RULE, plan).layer_mask, plan)


def test_a_cost_by_hand(about):
    config, _ = about
    lengths = np.array([[10, 6, 4, 4], [8, 8, 8, 8]])
    plans = np.array([[1.0, 1, 0, 1], [1, 1, 1, 1]])
    found = trbert(config).cost(plans, lengths)
    full = [4 * layer_flops(ENCODER, int(n)) for n in lengths[:, 0]]
    run = [
        sum(p * layer_flops(ENCODER, int(n)) for p, n in zip(*pair, strict=True))
        for pair in zip(plans, lengths, strict=True)
    ]
    asked = np.array([10 + 6, 8 + 8]) * 2 * SELECTOR_SIZE * (ENCODER.hidden_size + 1)
    planner = planner_flops(config, lengths[:, 0]) if config.planner else 0
    np.testing.assert_allclose(found, (run + asked + planner) / np.array(full), rtol=1e-6)


def test_exits_may_be_within(random_params, random_batch):
    config = CONFIGS["alone"]
    exits = {f"exit_{i}": random_params(config, seed=i)["head"] for i in range(4)}
    params = {**random_params(config), **exits, **initial_selectors(config, seed=0)}
    policy, batch = TrBert(config, deebert(config)), random_batch(5)
    outputs = [
        make_executor(name, config, params, policy=policy)(batch, Rule(1.0, 0.6, 0))
        for name in ("masked", "cond", "packed")
    ]
    for output in outputs[1:]:
        np.testing.assert_array_equal(output.layer_mask, outputs[0].layer_mask)
        np.testing.assert_allclose(output.logits, outputs[0].logits, rtol=0, atol=1e-4)


def test_what_cannot_drop_tokens_says_so():
    mpnet = dataclasses.replace(ENCODER, model_type="mpnet")
    with pytest.raises(UserError, match="a position for each token"):
        trbert(DPBertConfig(mpnet))
