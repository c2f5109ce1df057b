"""Insight: what the plans depend on."""

from typing import Any

import numpy as np
from sklearn.metrics import mutual_info_score

from dpbert_jax.config import EncoderConfig
from dpbert_jax.data import TokenizedSplit
from dpbert_jax.problem import probabilities

BINS = 5
PERMUTATIONS = 20


def difficulty(
    split: TokenizedSplit, dense_logits: np.ndarray, encoder: EncoderConfig
) -> np.ndarray:
    """How hard the dense model found each row; [N].

    Classes: one less its confidence, the probability of the class that it predicts; of several
    labels the mean over them. Regression: its absolute error, for which the rows need labels.
    """
    if encoder.is_regression:
        assert split.labels is not None
        return np.abs(dense_logits[:, 0] - split.labels)
    each = probabilities(dense_logits, encoder.problem_type)
    if encoder.is_multi_label:
        return np.minimum(each, 1 - each).mean(axis=1)
    return 1 - each.max(axis=1)


def insight(
    layer_mask: np.ndarray, split: TokenizedSplit, dense_logits: np.ndarray, encoder: EncoderConfig
) -> dict[str, Any]:
    """Layer frequencies, the number of plans, and their mutual information with what inputs are.

    In bits; numbers are cut into five bins of equal size first. A few rows share information with
    anything by chance: `chance` is the mean over random permutations of the plans.

    Args:
        layer_mask: plans [N, L].
    """
    _, plans = np.unique(layer_mask, axis=0, return_inverse=True)
    plans = plans.reshape(-1)
    properties = {
        "length": _bins(split.lengths),
        "dense_error" if encoder.is_regression else "dense_uncertainty": _bins(
            difficulty(split, dense_logits, encoder)
        ),
    }
    if split.labels is not None:
        properties["label"] = (
            _bins(split.labels) if encoder.is_regression else _numbered(split.labels)
        )
    random = np.random.default_rng(0)
    shuffled = [random.permutation(plans) for _ in range(PERMUTATIONS)]
    return {
        "layer_frequency": layer_mask.mean(axis=0).round(6).tolist(),
        "distinct_plans": int(plans.max()) + 1,
        "plan_entropy_bits": _bits(plans, plans),
        "mutual_information_bits": {
            name: {
                "plans": _bits(plans, values),
                "chance": float(np.mean([_bits(other, values) for other in shuffled])),
            }
            for name, values in properties.items()
        },
    }


def _numbered(labels: np.ndarray) -> np.ndarray:
    """A number for each class, or for each set of labels [N, C]."""
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def _bits(one: np.ndarray, other: np.ndarray) -> float:
    return float(mutual_info_score(one, other) / np.log(2))


def _bins(values: np.ndarray) -> np.ndarray:
    """The number of each value's bin; equal values fall into one."""
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")
