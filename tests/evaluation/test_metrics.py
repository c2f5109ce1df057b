"""The metrics against formulas written out, and where they are undefined."""

import math

import numpy as np
import pytest
from scipy.stats import rankdata

from dpbert_jax.data import TaskSpec
from dpbert_jax.evaluation.metrics import agreement, compute_metrics, percent, score, share_kept
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, SINGLE_LABEL

# true positives 3, false positives 1, false negatives 2, true negatives 4
LABELS = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
PREDICTED = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def task(*metrics, labels=("no", "yes"), **more):
    return TaskSpec("any", ("text",), labels, metrics, **more)


def one_hot(classes, width=2):
    return np.eye(width, dtype=np.float32)[classes] * 3 - 1


SCORES = task("pearson", "spearmanr", labels=None)


def test_classification_by_hand():
    names = ("accuracy", "f1", "matthews_correlation")
    found = compute_metrics(task(*names), one_hot(PREDICTED), LABELS)
    matthews = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    wanted = {"accuracy": 0.7, "f1": 3 / (3 + (1 + 2) / 2), "matthews_correlation": matthews}
    assert found == pytest.approx(wanted)


def test_three_classes():
    labels, predicted = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])
    spec = task("accuracy", "f1_macro", labels=("a", "b", "c"))
    found = compute_metrics(spec, one_hot(predicted, 3), labels)
    assert found == pytest.approx({"accuracy": 0.5, "f1_macro": (1 + 0 + 1 / 2) / 3})


def test_correlations_by_hand():
    scores, predicted = np.random.default_rng(0).standard_normal((2, 40)).round(1)
    predicted += scores
    found = compute_metrics(SCORES, predicted[:, None], scores)
    ranks = rankdata(scores), rankdata(predicted)
    wanted = {
        "pearson": np.corrcoef(scores, predicted)[0, 1],
        "spearmanr": np.corrcoef(*ranks)[0, 1],
    }
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("predicted", [[2.0] * 4, [2.0, 2.0, 2.0, 2.0 + 1e-14]])
def test_scores_that_are_constant_warn_of_nothing(predicted):
    predicted = np.array(predicted)
    found = compute_metrics(SCORES, predicted[:, None], np.arange(4.0))
    if (predicted == 2).all():
        assert all(math.isnan(value) for value in found.values())
        assert math.isnan(score(found))


def test_a_single_row_has_no_correlation():
    found = compute_metrics(SCORES, np.ones((1, 1)), np.ones(1))
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("only", [0, 1])
def test_a_single_class_warns_of_nothing(only):
    names, classes = ("accuracy", "f1", "matthews_correlation"), np.full(5, only)
    found = compute_metrics(task(*names), one_hot(classes), classes)
    assert found == {"accuracy": 1, "f1": only, "matthews_correlation": 0}


def test_agreement_is_of_classes_or_the_correlation_of_scores():
    assert (
        agreement(one_hot(PREDICTED), one_hot(LABELS), SINGLE_LABEL) == 0.7
    )  # whatever the margins
    scores = np.array([[0.1], [0.4], [0.3]], np.float32)
    assert agreement(2 * scores + 1, scores, REGRESSION) == pytest.approx(1)
    assert agreement(-scores, scores, REGRESSION) == pytest.approx(-1)


def test_f1_is_of_the_class_that_the_task_names():
    rare, usual = task("f1", positive=0), task("f1", positive=1)
    assert compute_metrics(usual, one_hot(PREDICTED), LABELS) == {"f1": pytest.approx(2 / 3)}
    # Of class 0: 4 found, 2 wrongly, 1 missed.
    assert compute_metrics(rare, one_hot(PREDICTED), LABELS) == {"f1": pytest.approx(8 / 11)}


def test_several_labels_by_hand():
    spec = task("f1_micro", "f1_macro", labels=("a", "b", "c"), multi_label=True)
    labels = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    said = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    found = compute_metrics(spec, said * 2 - 1.0, labels)
    # Label by label: 1, 2/3, and none found of the third.
    assert found == pytest.approx({"f1_micro": 2 * 2 / (2 * 2 + 2), "f1_macro": (1 + 2 / 3) / 3})
    # A row agrees where all of its labels do.
    assert agreement(said * 2 - 1.0, labels * 2 - 1.0, MULTI_LABEL) == pytest.approx(1 / 3)


def test_a_tasks_score_is_the_mean_of_its_metrics():
    assert score({"accuracy": 0.5, "f1": 0.25}) == 0.375


def test_nothing_is_a_share_of_a_dense_score_of_zero():
    assert share_kept(0.6, 0.8) == pytest.approx(0.75)
    assert math.isnan(share_kept(0.1, 0.0))
    assert math.isnan(share_kept(-0.04, -0.01))  # no 431 % of a correlation below 0
    assert (percent(math.nan), percent(0.98765)) == ("undefined", "98.8 %")
