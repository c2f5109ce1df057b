"""GLUE's metrics by their run_glue names, from scikit-learn and scipy."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def _pearson(labels: np.ndarray, predicted: np.ndarray) -> Any:
    return pearsonr(labels, predicted)[0] if len(labels) > 1 else math.nan


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": _pearson,
    "spearmanr": lambda labels, predicted: spearmanr(labels, predicted)[0],
}


def compute_metrics(
    names: Iterable[str], logits: np.ndarray, labels: np.ndarray, is_regression: bool
) -> dict[str, float]:
    """Each named metric over a whole split.

    Args:
        logits: [N, C]; the class with the largest is predicted, or column 0 is the score.
        labels: [N] class ids or scores.

    Returns:
        Values in [-1, 1]; NaN for a correlation that constant scores or a single row leave
        undefined.
    """
    predicted = logits[:, 0] if is_regression else logits.argmax(axis=-1)
    with warnings.catch_warnings():
        # What is undefined says it already: NaN, or the 0 of scikit-learn.
        warnings.simplefilter("ignore")
        return {name: float(_METRICS[name](labels, predicted)) for name in names}


def agreement(logits: np.ndarray, others: np.ndarray, is_regression: bool) -> float:
    """How far two models say the same of a split's rows, whatever its labels.

    The share of rows that get the same class; of scores their Pearson correlation.

    Args:
        logits, others: [N, C], of the same rows.
    """
    said = others[:, 0] if is_regression else others.argmax(axis=-1)
    name = "pearson" if is_regression else "accuracy"
    return compute_metrics([name], logits, said, is_regression)[name]


def score(metrics: dict[str, float]) -> float:
    """One number for a task: the mean of its metrics, as on the GLUE leaderboard."""
    return math.fsum(metrics.values()) / len(metrics)


def share_kept(value: float, dense: float) -> float:
    """A score's share of the dense model's; NaN where that is 0."""
    return value / dense if dense else math.nan
