"""Insight: information that is there is found, and what is not stays at chance."""

import numpy as np
import pytest

from dpbert_jax.config import TINY
from dpbert_jax.evaluation.plots import plot_layers_by_difficulty
from dpbert_jax.study.insight import difficulty, insight


@pytest.fixture(scope="module")
def rows(random_split):
    """200 rows whose plan follows from their length alone."""
    split = random_split(200)
    random = np.random.default_rng(0)
    logits = random.standard_normal((200, 2)).astype(np.float32)
    long = split.lengths > np.median(split.lengths)
    mask = np.stack([np.ones(200), long, ~long], axis=1).astype(np.int8)
    return split, logits, mask


def test_plans_that_follow_the_length_share_information_with_it_alone(rows):
    split, logits, mask = rows
    found = insight(mask, split, logits, TINY)
    shared = found["mutual_information_bits"]
    assert found["distinct_plans"] == 2
    assert found["plan_entropy_bits"] == pytest.approx(1, abs=0.02)
    assert shared["length"]["plans"] > 0.8 > 0.1 > shared["length"]["chance"]
    for name in ("label", "dense_uncertainty"):
        assert abs(shared[name]["plans"] - shared[name]["chance"]) < 0.05


def test_one_plan_tells_nothing(rows):
    split, logits, mask = rows
    found = insight(np.ones_like(mask), split, logits, TINY)
    assert found["plan_entropy_bits"] == 0
    assert all(part["plans"] == 0 for part in found["mutual_information_bits"].values())
    assert found["layer_frequency"] == [1, 1, 1]


def test_difficulty_is_one_less_confidence(rows):
    split, logits, _ = rows
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = 1 - probability.max(axis=1)
    np.testing.assert_allclose(difficulty(split, logits, TINY), wanted, atol=1e-6)


def test_the_picture_is_written(rows, tmp_path):
    split, logits, mask = rows
    path = tmp_path / "layers.png"
    hard = difficulty(split, logits, TINY)
    plot_layers_by_difficulty(path, {0.5: mask, 0.75: mask}, hard, "uncertainty", "title")
    assert path.read_bytes().startswith(b"\x89PNG")
