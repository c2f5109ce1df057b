"""Models and inputs that every conversion is compared on."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.inference import make_executor, resolve_rule

CALIBRATION = Calibration((0.6, 0.8, 1.0), (0.9, -0.4, -3.0))
PLANNED = DPBertConfig(
    TINY, PlannerConfig(hidden_size=8, min_budget=0.6, min_layers=2), CALIBRATION
)
SINGLE = DPBertConfig(
    dataclasses.replace(TINY, hidden_act="gelu_new"),
    PlannerConfig(hidden_size=8, min_budget=0.6, max_budget=0.6),
    Calibration((0.6,), (0.2,)),
)
NO_STEM = DPBertConfig(
    dataclasses.replace(TINY, hidden_act="relu", num_labels=3),
    PlannerConfig(hidden_size=8, min_budget=0.3, stem_layers=0),
    Calibration((0.3, 1.0), (0.5, -0.5)),
)
CONFIGS = {"planned": PLANNED, "single": SINGLE, "no_stem": NO_STEM}


@pytest.fixture(params=CONFIGS, ids=list(CONFIGS))
def any_config(request):
    return CONFIGS[request.param]


@pytest.fixture
def planned_config():
    return PLANNED


@pytest.fixture
def reference():
    """A function (config, params, batch, budget, plan_rule) -> what this library answers."""

    def answer(config, params, batch, budget, plan_rule="threshold"):
        made = make_executor("masked", config, params, jnp.float32)(
            batch, resolve_rule(config, budget, plan_rule)
        )
        return tuple(np.asarray(value) for value in made)

    return answer


@pytest.fixture
def budgets():
    """A function config -> budgets over its range, and 1."""

    def over(config):
        planner = config.planner
        return sorted({*np.linspace(planner.min_budget, planner.max_budget, 5).tolist(), 1.0})

    return over


@pytest.fixture
def spoil_unneeded():
    """A function (config, params, layer_mask) -> params with NaN in layers that no row runs."""

    def spoil(config, params, layer_mask):
        unneeded = [
            i for i in range(config.encoder.num_hidden_layers) if not layer_mask[:, i].any()
        ]
        assert unneeded, "every layer is needed by some row: choose other inputs"
        spoilt = dict(params)
        for i in unneeded:
            layer = params[f"layer_{i}"]
            spoilt[f"layer_{i}"] = {
                name: {leaf: jnp.full_like(value, jnp.nan) for leaf, value in part.items()}
                for name, part in layer.items()
            }
        return spoilt

    return spoil
