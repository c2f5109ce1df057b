"""Executors over every plan of the tiny model: they agree, and `cond` runs what it must only."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.errors import UserError
from dpbert_jax.inference import executors, make_executor, resolve_rule
from dpbert_jax.inference.rules import Rule
from dpbert_jax.model import DPBert

STEMS = (0, 1)


def config_of(stem):
    grid = Calibration((0.4, 0.7, 1.0), (1.0, 0.0, -2.0))
    return DPBertConfig(TINY, PlannerConfig(stem_layers=stem, min_budget=0.3), grid)


def all_plans(config):
    plans = list(itertools.product([0.0, 1.0], repeat=config.num_gates))
    return jnp.array(plans)


def close(actual, wanted):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=STEMS, ids="stem{}".format)
def setup(request, random_params, random_batch):
    """Model, parameters, stem states of as many rows as there are plans, and both encoders."""
    config = config_of(request.param)
    model, params = DPBert(config), random_params(config)
    batch = random_batch(2**config.num_gates)
    states = jax.jit(functools.partial(model.apply, method="stem"))({"params": params}, **batch)
    encoders = {
        name: jax.jit(functools.partial(encode, model, params))
        for name, encode in executors.EXECUTORS.items()
    }
    return config, model, params, states, batch["attention_mask"], encoders


def test_every_plan_at_batch_1_and_in_one_program(setup):
    config, _, _, states, mask, encoders = setup
    plans, compiled = all_plans(config), encoders["cond"]._cache_size()
    reference = encoders["masked"](states, mask, plans)
    for row in range(len(plans)):
        one = slice(row, row + 1)
        close(encoders["cond"](states[one], mask[one], plans[one]), reference[one])
    assert encoders["cond"]._cache_size() == compiled + 1
    # The plans are told apart: an executor that ignored them would fail above.
    lone = encoders["masked"](
        states[:1].repeat(len(plans), 0), mask[:1].repeat(len(plans), 0), plans
    )
    apart = jnp.abs(lone[:, None] - lone[None]).max(axis=(2, 3)) + jnp.eye(len(plans))
    assert apart.min() > 1e-2


def test_every_plan_in_a_batch_of_different_plans(setup):
    config, _, _, states, mask, encoders = setup
    plans, compiled = all_plans(config), encoders["cond"]._cache_size()
    for shift in range(0, len(plans), 2):
        rows = (jnp.arange(6) * 3 + shift) % len(plans)
        pick = states[:6], mask[:6], plans[rows]
        close(encoders["cond"](*pick), encoders["masked"](*pick))
    assert encoders["cond"]._cache_size() == compiled + 1


def test_no_planned_layer_leaves_the_stem_states(setup):
    config, _, _, states, mask, encoders = setup
    none = jnp.zeros((len(states), config.num_gates))
    for encode in encoders.values():
        np.testing.assert_array_equal(encode(states, mask, none), states)


@pytest.fixture(scope="module")
def executor(random_params):
    """Built once for each name and stem: most of a test's time is compilation."""

    @functools.cache
    def build(name, stem):
        config = config_of(stem)
        return make_executor(name, config, random_params(config))

    return build


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
@pytest.mark.parametrize("rows", [1, 3])
def test_compiled_program_holds_one_conditional_a_planned_layer(
    stem, rows, random_params, random_batch
):
    config, batch = config_of(stem), random_batch(rows)
    params = random_params(config)
    found = {}
    for name, encode in executors.EXECUTORS.items():
        program = jax.jit(functools.partial(executors.forward, DPBert(config), encode))
        text = program.lower(params, **batch, rule=Rule(0.5, 0.0, 4)).compile().as_text()
        found[name] = len(re.findall(r" conditional\(", text))
    assert found == {"masked": 0, "cond": config.num_gates}


@pytest.fixture
def executed(monkeypatch):
    """Notes the layers that `encode_cond` really runs; a layer is known by its mark."""
    ran = []

    class Counted:
        def __init__(self, *arguments):
            self.layer = executors_layer(*arguments)

        def apply(self, variables, states, bias):
            mark = variables["params"]["mark"]
            jax.debug.callback(lambda layer: ran.append(int(layer)), mark)
            real = {key: value for key, value in variables["params"].items() if key != "mark"}
            return self.layer.apply({"params": real}, states, bias)

    executors_layer = executors.Layer
    monkeypatch.setattr(executors, "Layer", Counted)
    return ran


@pytest.mark.parametrize("rows", [1, 2])
def test_only_the_layers_that_a_row_keeps_are_executed(rows, setup, executed):
    config, model, params, states, mask, _ = setup
    marked = {
        key: {**value, "mark": jnp.int32(key.removeprefix("layer_"))}
        for key, value in params.items()
        if key.startswith("layer_")
    }
    encode = jax.jit(functools.partial(executors.encode_cond, model, marked))
    plans = all_plans(config)
    for i in range(len(plans)):
        gates = plans[(i + 5 * np.arange(rows)) % len(plans)]
        encode(states[:rows], mask[:rows], gates).block_until_ready()
        jax.effects_barrier()
        needed = np.flatnonzero(np.asarray(gates).any(axis=0)) + config.stem_layers
        assert sorted(executed) == needed.tolist()
        executed.clear()


@pytest.mark.parametrize("name", executors.EXECUTORS)
def test_one_compilation_serves_all_plans_budgets_and_rules(
    name, monkeypatch, random_params, random_batch
):
    traces, plans = [], set()
    encode = executors.EXECUTORS[name]

    def counting(*arguments):
        traces.append(name)
        return encode(*arguments)

    monkeypatch.setitem(executors.EXECUTORS, name, counting)
    config = config_of(0)
    execute = make_executor(name, config, random_params(config))
    for plan_rule in ("threshold", "top_k"):
        for budget in (0.3, 0.5, np.float64(0.65), 0.8, 1.0):
            for seed in range(4):
                batch = random_batch(4, seed=seed)
                output = execute(batch, resolve_rule(config, budget, plan_rule))
                plans |= {tuple(row) for row in np.asarray(output.layer_mask).tolist()}
    assert len(traces) == 1
    assert len(plans) > 5


def test_refusals(executor, random_batch):
    with pytest.raises(UserError, match="'fast', but must be one of"):
        make_executor("fast", config_of(1), {})
    with pytest.raises(UserError, match="33 tokens, but the model has positions for 32"):
        executor("cond", 1)(random_batch(1, length=33), resolve_rule(config_of(1), 1.0))
