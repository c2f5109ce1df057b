"""The optimizer: who is in which group, how fast it moves, and whose gradient is clipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from dpbert_jax.config import TINY, AdapterConfig, DPBertConfig, PlannerConfig
from dpbert_jax.study.trbert import initial_selectors
from dpbert_jax.training.optimizer import (
    backbone_schedule,
    make_optimizer,
    parameter_groups,
    planner_schedule,
)

FROZEN = frozenset({"planner", "embeddings", "layer_0"})
CONFIG = DPBertConfig(
    dataclasses.replace(TINY, num_hidden_layers=3), PlannerConfig(), adapters=AdapterConfig(2)
)
RATE, PLANNER_RATE, ADAPTER_RATE, DECAY, NORM = 1e-3, 1e-2, 3e-3, 0.1, 0.5


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(CONFIG)


def first_update(params, gradients, frozen=frozenset()):
    """Updates of the first step, at the peak rate, and the optimizer's state behind it."""
    optimizer = make_optimizer(
        params,
        frozen=frozen,
        num_steps=10,
        learning_rate=RATE,
        planner_learning_rate=PLANNER_RATE,
        adapter_learning_rate=ADAPTER_RATE,
        weight_decay=DECAY,
        warmup_ratio=0.0,
        max_grad_norm=NORM,
    )
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(gradients, params)


@pytest.mark.parametrize("frozen", [frozenset(), FROZEN])
def test_groups(frozen, params):
    for path, group in flatten_dict(parameter_groups(params, frozen)).items():
        if path[0] in frozen:
            assert group == "frozen"
        elif path[0] in ("planner", "adapters"):
            assert group == path[0]
        else:
            assert group == ("no_decay" if path[-1] in ("bias", "scale") else "decay")


def test_decay_shrinks_weights_only(params):
    updates, _ = first_update(params, jax.tree.map(jnp.zeros_like, params))
    flat = flatten_dict(params)
    for path, update in flatten_dict(updates).items():
        decayed = path[0] not in ("planner", "adapters") and path[-1] not in ("bias", "scale")
        np.testing.assert_allclose(update, -RATE * DECAY * decayed * flat[path], rtol=1e-5)


def test_planner_and_adapters_have_rates_of_their_own(params):
    """Adam's first step is the rate itself, whatever the gradient's size."""
    updates, _ = first_update(params, jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params))
    np.testing.assert_allclose(updates["planner"]["input"]["kernel"], -PLANNER_RATE, rtol=1e-3)
    np.testing.assert_allclose(updates["layer_0"]["query"]["bias"], -RATE, rtol=1e-3)
    own = updates["adapters"]["layer_1"]["query"]["up"]
    np.testing.assert_allclose(own, -ADAPTER_RATE, rtol=1e-3)


def test_what_is_frozen_does_not_move(params):
    updates, _ = first_update(params, jax.tree.map(jnp.ones_like, params), FROZEN)
    for part, update in updates.items():
        moved = any((leaf != 0).any() for leaf in jax.tree.leaves(update))
        assert moved == (part not in FROZEN)


@pytest.mark.parametrize("steep", ["backbone", "planner", "adapters"])
def test_a_steep_gradient_is_clipped_and_the_other_group_left_alone(steep, params):
    sizes = {"backbone": 1e-4, "planner": 1e-4, "adapters": 1e-4, steep: 10.0}
    gradients = {
        part: jax.tree.map(
            lambda x, part=part: jnp.full_like(x, sizes.get(part, sizes["backbone"])), tree
        )
        for part, tree in params.items()
    }
    _, state = first_update(params, gradients)
    groups = state[-1].inner_states
    # Adam's first moment after one step is a tenth of the gradient that reached it.
    norms = {
        group: 10 * float(optax.tree.norm(optax.tree.get(groups[group], "mu")))
        for group in ("decay", "no_decay", "planner", "adapters")
    }
    backbone = np.hypot(norms.pop("decay"), norms.pop("no_decay"))
    found = {**norms, "backbone": backbone}
    given = {group: gradients.pop(group) for group in ("planner", "adapters")}
    given["backbone"] = gradients
    given = {group: float(optax.tree.norm(tree)) for group, tree in given.items()}
    for group, norm in found.items():
        assert norm == pytest.approx(NORM if group == steep else given[group], rel=1e-4)
    assert given[steep] > NORM


@pytest.mark.parametrize("step, share", [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.5)])
def test_backbone_schedule_rises_then_falls(step, share):
    assert backbone_schedule(3.0, 100, 0.1)(step) == pytest.approx(3 * share)


def test_backbone_schedule_ends_next_to_zero_and_starts_at_once():
    assert backbone_schedule(1.0, 100, 0.1)(99) == pytest.approx(1 / 90, rel=1e-4)
    assert backbone_schedule(1.0, 100, 0.1)(100) == 0
    for steps in (1, 2, 100):
        assert backbone_schedule(1.0, steps, 0.0)(0) == pytest.approx(1.0)


@pytest.mark.parametrize("step, share", [(0, 1.0), (60, 1.0), (80, 0.55), (100, 0.1)])
def test_planner_schedule_is_flat_then_falls_tenfold(step, share):
    assert planner_schedule(2.0, 100)(step) == pytest.approx(2 * share)


def test_selectors_learn_as_the_planner_does(params):
    selectors = initial_selectors(dataclasses.replace(CONFIG, adapters=None), 0)
    groups = flatten_dict(parameter_groups({**params, **selectors}, {"planner"}))
    assert {path[0] for path, group in groups.items() if group == "planner"} == set(selectors)
