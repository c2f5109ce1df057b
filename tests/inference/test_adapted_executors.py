"""Adapters by depth: every executor adds those of each plan's depth, and none to all layers."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from dpbert_jax.config import TINY, AdapterConfig, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.data import batches
from dpbert_jax.inference import make_executor
from dpbert_jax.policies.rule import Rule
from dpbert_jax.training.plan_table import make_table

ANY = Rule(0.6, 0.0, 4)
CONFIG = DPBertConfig(
    TINY,
    PlannerConfig(stem_layers=1, min_budget=0.3, min_layers=2),
    Calibration((0.4, 1.0), (1.0, -6.0)),
    adapters=AdapterConfig(rank=3),
)
PLANS = np.array([(1, *gates) for gates in itertools.product((0, 1), repeat=3) if any(gates)])


@pytest.fixture(scope="module")
def params(random_params):
    """Adapters that say something: as drawn they add nothing."""
    made = random_params(CONFIG)
    keys = iter(jax.random.split(jax.random.key(7), 99))

    def stirred(leaf):
        return leaf + 0.3 * jax.random.normal(next(keys), leaf.shape)

    return {**made, "adapters": jax.tree.map(stirred, made["adapters"])}


@pytest.fixture(scope="module")
def executor(params):
    return functools.cache(lambda name: make_executor(name, CONFIG, params))


def merged(params, depth):
    """The parameters of a model without adapters that is what plans of this depth run."""
    slot = depth - 2
    made = {name: part for name, part in params.items() if name != "adapters"}

    def with_own(part, own):
        if "down" in own:
            added = own["down"][slot] @ own["up"][slot]
            part = {**part, "kernel": part["kernel"] + added}
        rest = {name: part[name] + own[name][slot] for name in own if name in part}
        return {**part, **rest}

    for name, adapters in params["adapters"].items():
        own = {part: with_own(made[name][part], adapters[part]) for part in adapters}
        made[name] = {**made[name], **own}
    return made


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_depth_is_the_model_with_its_adapters_merged(depth, params, executor, random_batch):
    plain = dataclasses.replace(CONFIG, adapters=None)
    own = merged(params, depth) if depth < 4 else params
    reference = make_executor("masked", plain, own)
    for plan in PLANS[PLANS.sum(axis=1) == depth]:
        batch, rows = random_batch(5), np.tile(plan, (5, 1))
        wanted = reference(batch, ANY, rows).logits
        found = executor("masked")(batch, ANY, rows).logits
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cond", "chunked", "packed"])
@pytest.mark.parametrize("rows", [1, 7])
def test_every_plan(name, rows, executor, random_batch):
    for shift in range(len(PLANS)):
        plans = PLANS[(3 * np.arange(rows) + shift) % len(PLANS)]
        batch = random_batch(rows, length=16, seed=shift)
        wanted = executor("masked")(batch, ANY, plans).logits
        np.testing.assert_allclose(
            executor(name)(batch, ANY, plans).logits, wanted, rtol=0, atol=1e-4
        )


def test_the_policys_own_plans_have_the_adapters_of_their_depth(executor, random_batch):
    batch = random_batch(9, length=16)
    for threshold in (-6.0, -0.2, 0.0, 0.2):
        rule = Rule(0.6, threshold, 4)
        wanted = executor("masked")(batch, rule)
        for name in ("cond", "chunked", "packed"):
            found = executor(name)(batch, rule)
            np.testing.assert_array_equal(found.layer_mask, wanted.layer_mask)
            np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=1e-4)


def test_a_plan_table_adds_them_as_well(params, executor, random_split):
    split = random_split(6)
    gates = PLANS[:, 1:].astype(np.float32)
    table = make_table(CONFIG, params, split, gates, max_seq_length=16)
    for number, plan in enumerate(PLANS):
        (batch,) = batches(split, 6, 16, pad_token_id=0)
        output = executor("masked")(batch, ANY, np.tile(plan, (6, 1)))
        rows = batch["indices"]
        np.testing.assert_allclose(table.logits[rows, number], output.logits, rtol=0, atol=1e-4)
