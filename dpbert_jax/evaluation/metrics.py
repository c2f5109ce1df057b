"""Metrics by their names in run_glue and run_classification, from scikit-learn and scipy."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from dpbert_jax.data import TaskSpec
from dpbert_jax.problem import REGRESSION, ProblemType, answers


def _f1_of(average: str) -> Callable[..., Any]:
    return lambda labels, predicted, _: f1_score(labels, predicted, average=average)


def _pearson(labels: np.ndarray, predicted: np.ndarray, _: Any = None) -> Any:
    return pearsonr(labels, predicted)[0] if len(labels) > 1 else math.nan


# (labels [N] or [N, C], predicted of the same shape, task) -> the metric
_METRICS: dict[str, Callable[[np.ndarray, np.ndarray, TaskSpec], Any]] = {
    "accuracy": lambda labels, predicted, _: accuracy_score(labels, predicted),
    # As of one class against the rest: that of scikit-learn for two classes.
    "f1": lambda labels, predicted, spec: f1_score(
        labels == spec.positive, predicted == spec.positive
    ),
    "f1_macro": _f1_of("macro"),
    "f1_micro": _f1_of("micro"),
    "matthews_correlation": lambda labels, predicted, _: matthews_corrcoef(labels, predicted),
    "pearson": _pearson,
    "spearmanr": lambda labels, predicted, _: spearmanr(labels, predicted)[0],
}


def compute_metrics(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Each of the task's metrics over a whole split.

    Args:
        logits: [N, C].
        labels: [N] class ids or scores, or [N, C] of 0 and 1.

    Returns:
        Values in [-1, 1]; NaN for a correlation that constant scores or a single row leave
        undefined.
    """
    predicted = answers(logits, spec.problem_type)
    with warnings.catch_warnings():
        # What is undefined says it already: NaN, or the 0 of scikit-learn.
        warnings.simplefilter("ignore")
        return {name: float(_METRICS[name](labels, predicted, spec)) for name in spec.metrics}


def agreement(logits: np.ndarray, others: np.ndarray, problem_type: ProblemType) -> float:
    """How far two models say the same of a split's rows, whatever its labels.

    The share of rows that get the same class, or the very same set of labels; of scores their
    Pearson correlation.

    Args:
        logits, others: [N, C], of the same rows.
    """
    said, other = answers(logits, problem_type), answers(others, problem_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(
            _pearson(other, said) if problem_type == REGRESSION else accuracy_score(other, said)
        )


def score(metrics: dict[str, float]) -> float:
    """One number for a task: the mean of its metrics, as on the GLUE leaderboard."""
    return math.fsum(metrics.values()) / len(metrics)


def share_kept(value: float, dense: float) -> float:
    """A score's share of the dense model's; NaN where that is 0 or, as correlations can be, below.

    Of -0.01 even a better score would be a share below 0, and a worse one a share above 1.
    """
    return value / dense if dense > 0 else math.nan


def percent(share: float) -> str:
    """A share as tables print it."""
    return "undefined" if math.isnan(share) else f"{100 * share:.1f} %"
