"""A planned model with random parameters."""

import dataclasses

import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig


@pytest.fixture(scope="session")
def planned_config():
    return DPBertConfig(TINY, PlannerConfig())


@pytest.fixture(scope="session")
def planned_model(planned_config, random_params, random_split):
    """Config with calibrated thresholds, and parameters."""
    from dpbert_jax.evaluation.calibration import calibrate

    params = random_params(planned_config, seed=2)
    split = random_split(40, seed=1)
    found = calibrate(planned_config, params, split, inputs="x", batch_size=40, max_seq_length=16)
    return dataclasses.replace(planned_config, calibration=found), params
