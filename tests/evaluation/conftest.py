"""A planned model with random parameters and a split of random rows."""

import dataclasses

import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.data import TokenizedSplit


@pytest.fixture(scope="session")
def planned_config():
    return DPBertConfig(TINY, PlannerConfig())


@pytest.fixture(scope="session")
def random_split():
    """A function (rows, longest) -> a split whose first token of a row is the row's number."""

    def draw(rows, longest=16, seed=0):
        random = np.random.default_rng(seed)
        lengths = random.integers(3, longest + 1, rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        token_ids = random.integers(1, 64, offsets[-1], np.int32)
        token_ids[offsets[:-1]] = np.arange(rows)
        type_ids = random.integers(0, 2, offsets[-1]).astype(np.int8)
        return TokenizedSplit(token_ids, type_ids, offsets, random.integers(0, 2, rows, np.int32))

    return draw


@pytest.fixture(scope="session")
def planned_model(planned_config, random_params, random_split):
    """Config with calibrated thresholds, and parameters."""
    from dpbert_jax.evaluation.calibration import calibrate

    params = random_params(planned_config, seed=2)
    split = random_split(40, seed=1)
    found = calibrate(planned_config, params, split, batch_size=40, max_seq_length=16)
    return dataclasses.replace(planned_config, calibration=found), params
