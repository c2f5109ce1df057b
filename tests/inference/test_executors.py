"""Executors: all agree with `masked` on any plan and lengths, and what is skipped does not run."""

import functools
import itertools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.errors import UserError
from dpbert_jax.inference import executors, make_executor, pick_executor, resolve_rule
from dpbert_jax.policies.rule import Rule

STEMS = (0, 1)
SKIPPING = ("cond", "chunked", "packed")
ANY = Rule(0.6, 0.0, 4)


def config_of(stem):
    grid = Calibration((0.4, 0.7, 1.0), (1.0, 0.0, -2.0))
    return DPBertConfig(TINY, PlannerConfig(stem_layers=stem, min_budget=0.3), grid)


def all_plans(config):
    gates = np.array(list(itertools.product([0, 1], repeat=config.num_gates)))
    return np.concatenate([np.ones((len(gates), config.stem_layers), int), gates], axis=1)


def close(actual, wanted):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def executor(random_params):
    """Built once for each name and stem: most of a test's time is compilation."""

    @functools.cache
    def build(name, stem):
        config = config_of(stem)
        return make_executor(name, config, random_params(config))

    return build


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("rows", [1, 6])
def test_every_plan(name, stem, rows, executor, random_batch):
    plans = all_plans(config_of(stem))
    batch = random_batch(rows)
    told_apart = set()
    for shift in range(len(plans)):
        plan = plans[(3 * np.arange(rows) + shift) % len(plans)]
        output = executor(name, stem)(batch, ANY, plan)
        reference = executor("masked", stem)(batch, ANY, plan)
        close(output.logits, reference.logits)
        close(output.gate_logits, reference.gate_logits)
        np.testing.assert_array_equal(output.layer_mask, plan)
        told_apart.add(tuple(np.asarray(output.logits)[0].round(3).tolist()))
    assert len(told_apart) > len(plans) // 2  # an executor that ignored its plan would fail here


@settings(max_examples=10, deadline=None, derandomize=True)
@given(rows=st.sampled_from([1, 2, 7, 16, 33]), seed=st.integers(0, 10**6))
def test_random_plans_ragged_lengths_any_batch_size(rows, seed, executor, random_batch):
    """Lengths from 2 tokens to the width; output rows stay where their inputs are."""
    plan = np.random.default_rng(seed).integers(0, 2, (rows, 4))
    plan[:, 0] = 1
    batch = random_batch(rows, length=16, seed=seed)
    reference = executor("masked", 1)(batch, ANY, plan)
    for name in SKIPPING:
        close(executor(name, 1)(batch, ANY, plan).logits, reference.logits)


@pytest.mark.parametrize("name", executors.EXECUTORS)
def test_a_row_does_not_depend_on_its_batch(name, executor, random_batch):
    execute, batch = executor(name, 0), random_batch(6)
    logits = np.asarray(execute(batch, Rule(0.6, 0.0, 4)).gate_logits)
    split = float(np.median(logits[:, logits.std(axis=0).argmax()]))  # half of the rows skip here
    for rule in (Rule(0.6, split, 4), Rule(0.6, -np.inf, 2)):
        whole = execute(batch, rule)
        assert rule.top_k < 4 or len(np.unique(whole.layer_mask, axis=0)) > 1
        for row in range(6):
            alone = execute({key: value[row : row + 1] for key, value in batch.items()}, rule)
            np.testing.assert_array_equal(alone.layer_mask[0], whole.layer_mask[row])
            close(alone.gate_logits[0], whole.gate_logits[row])
            close(alone.logits[0], whole.logits[row])


@pytest.mark.parametrize("name", executors.EXECUTORS)
@pytest.mark.parametrize("stem", STEMS)
def test_full_budget_is_the_dense_bert(name, stem, executor, random_params, random_batch):
    config, batch = config_of(stem), random_batch(6)
    planned = executor(name, stem)(batch, resolve_rule(config, 1.0))
    params = {key: value for key, value in random_params(config).items() if key != "planner"}
    dense_config = DPBertConfig(TINY)
    dense = make_executor(name, dense_config, params)(batch, resolve_rule(dense_config, 1.0))
    close(planned.logits, dense.logits)
    for output in (planned, dense):
        np.testing.assert_array_equal(output.layer_mask, np.ones((6, 4)))
    assert dense.gate_logits.shape == (6, 0)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize(
    ("name", "pattern"), [("masked", None), ("cond", "conditional"), ("chunked", "while")]
)
def test_compiled_program_decides_once_a_planned_layer(
    name, pattern, stem, random_params, random_batch
):
    """One branch, or one loop of as many turns as needed, around the layers' products alone."""
    config = config_of(stem)
    execute = make_executor(
        name, config, random_params(config), chunk_size=1 if name == "chunked" else None
    )
    text = execute.lower(random_batch(3), ANY).as_text(dialect="hlo")
    body = text[text.index("ENTRY") :]
    found = {word: len(re.findall(rf" {word}\(", body)) for word in ("conditional", "while")}
    wanted = {"conditional": 0, "while": 0} | ({pattern: config.num_gates} if pattern else {})
    assert found == wanted


@pytest.fixture
def executed(monkeypatch):
    """Notes (layer, rows or tiles) of each layer that really runs; a layer is known by its bias."""
    from dpbert_jax.inference import in_graph, packed

    ran, real = [], in_graph.run_layer

    def counted(config, weights, states, bias):
        batch = states.shape[1]
        jax.debug.callback(lambda mark: ran.append((int(mark), batch)), weights.output_bias[0])
        return real(config, weights, states, bias)

    for module in (in_graph, packed):
        monkeypatch.setattr(module, "run_layer", counted)
    executors._shared_program.cache_clear()  # what was traced before would not be seen
    yield ran
    executors._shared_program.cache_clear()


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("rows", [1, 2])
def test_only_the_layers_that_a_row_keeps_are_executed(
    name, rows, executed, random_params, random_batch
):
    config = config_of(1)
    params = random_params(config)
    for i in range(4):
        bias = params[f"layer_{i}"]["output"]["bias"]
        params[f"layer_{i}"]["output"]["bias"] = bias.at[0].set(i)
    chunk = 1 if name == "chunked" else None
    execute = make_executor(name, config, params, chunk_size=chunk)
    batch = random_batch(rows, length=16)  # the narrowest tile
    batch["attention_mask"][:] = 1
    plans = all_plans(config)
    execute(batch, ANY, plans[:1].repeat(rows, 0)).logits.block_until_ready()  # compiles
    for i in range(len(plans)):
        plan = plans[(i + 5 * np.arange(rows)) % len(plans)]
        jax.effects_barrier()
        executed.clear()
        execute(batch, ANY, plan).logits.block_until_ready()
        jax.effects_barrier()
        layers = sorted({layer for layer, _ in executed})
        assert layers == np.flatnonzero(plan.any(axis=0)).tolist()
        if name == "chunked":  # the stem, layer 0, is one whole batch; then a turn for each row
            turns = [sum(layer == k for layer, _ in executed) for k in (1, 2, 3)]
            assert turns == plan[:, 1:].sum(axis=0).tolist()
        if name == "packed":  # one tile holds one row of full width
            tiles = [sum(n for layer, n in executed if layer == k) for k in range(4)]
            assert tiles == plan.sum(axis=0).tolist()


@pytest.mark.parametrize("name", executors.EXECUTORS)
def test_nothing_is_compiled_again_for_other_plans(name, random_params, random_batch, caplog):
    config = config_of(1)
    execute = make_executor(name, config, random_params(config))
    batch = random_batch(12)
    short = {**batch, "attention_mask": batch["attention_mask"] * (np.arange(8) < 2)}
    plans = all_plans(config)
    random = np.random.default_rng(0)
    jax.block_until_ready(execute(short, ANY, plans[random.integers(0, 8, 12)]))
    jax.block_until_ready(execute(batch, resolve_rule(config, 0.5)))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _ in range(20):
            jax.block_until_ready(execute(batch, ANY, plans[random.integers(0, 8, 12)]))
        for budget in (0.3, 0.5, np.float64(0.65), 1.0):
            for plan_rule in ("threshold", "top_k"):
                jax.block_until_ready(execute(batch, resolve_rule(config, budget, plan_rule)))
    compiled = [r.message for r in caplog.records if "Finished XLA compilation" in r.message]
    assert compiled == []


@pytest.mark.parametrize("name", executors.EXECUTORS)
def test_a_plan_of_the_stem_alone_works(name, executor, random_batch):
    plan = np.zeros((3, 4), int)
    plan[:, 0] = 1
    batch = random_batch(3)
    output = executor(name, 1)(batch, ANY, plan)
    close(output.logits, executor("masked", 1)(batch, ANY, plan).logits)
    np.testing.assert_array_equal(output.layer_mask, plan)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 0}, "0 rows"),
        ({"length": 33}, "33 tokens, but the model has positions for 32"),
        ({"plan": np.ones((2, 3))}, r"shape \(2, 3\)"),
        ({"plan": np.full((2, 4), 0.5)}, "row 0, layer 0 is 0.5"),
        ({"plan": np.array([[1, 1, 1, 1], [0, 1, 1, 1]])}, "skips layer 0 for row 1"),
        ({"left": True}, "Row 1's attention_mask begins with 0"),
        ({"ragged": True}, "one shape"),
    ],
)
def test_batches_and_plans_that_are_none(change, words, executor, random_batch):
    batch = random_batch(max(change.get("rows", 2), 1), change.get("length", 8))
    batch = {key: value[: change.get("rows", 2)] for key, value in batch.items()}
    if change.get("left"):
        batch["attention_mask"][1, 0] = 0
    if change.get("ragged"):
        batch["token_type_ids"] = batch["token_type_ids"][:, :4]
    with pytest.raises(UserError, match=words):
        executor("cond", 1)(batch, ANY, change.get("plan"))


def test_executors_that_are_none(random_params):
    config = config_of(1)
    with pytest.raises(UserError, match="'fast', but must be one of"):
        make_executor("fast", config, {})
    with pytest.raises(UserError, match="chunk_size is 0"):
        make_executor("chunked", config, random_params(config), chunk_size=0)
    with pytest.raises(UserError, match="no effect on the executor 'cond'"):
        make_executor("cond", config, random_params(config), chunk_size=4)


def test_auto_goes_by_batch_size(caplog):
    with caplog.at_level(logging.INFO):
        assert [pick_executor(rows) for rows in (1, 8, None)] == ["cond", "packed", "packed"]
    assert "is cond, for batch size 1 on cpu" in caplog.text


def test_bfloat16_follows_float32(random_params, random_batch):
    config, batch = config_of(1), random_batch(5)
    plan = all_plans(config)[[0, 3, 5, 6, 7]]
    for name in SKIPPING:
        low = make_executor(name, config, random_params(config), jnp.bfloat16)
        high = make_executor(name, config, random_params(config))
        np.testing.assert_allclose(
            low(batch, ANY, plan).logits, high(batch, ANY, plan).logits, atol=0.3
        )
