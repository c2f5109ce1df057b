"""What a model's outputs mean: one class of several, any number of labels, or a score.

The names are those of `problem_type` in a Hugging Face `config.json`.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, softmax

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

SINGLE_LABEL: ProblemType = "single_label_classification"
MULTI_LABEL: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"
PROBLEM_TYPES: tuple[str, ...] = get_args(ProblemType)


def answers(
    logits: Float[np.ndarray, "*N C"], problem_type: ProblemType
) -> Int[np.ndarray, "*N"] | Int[np.ndarray, "*N C"] | Float[np.ndarray, "*N"]:
    """What the logits say: class ids [...], labels as 0 and 1 [..., C], or scores [...]."""
    if problem_type == REGRESSION:
        return logits[..., 0]
    if problem_type == MULTI_LABEL:
        return (logits > 0).astype(np.int32)  # a probability above one half
    return logits.argmax(axis=-1)


def probabilities(
    logits: Float[np.ndarray, "*N C"], problem_type: ProblemType
) -> Float[np.ndarray, "*N C"]:
    """Of every class: they sum to 1, or, of several labels, each stands for itself.

    Raises:
        ValueError: the problem is a regression, which has none.
    """
    if problem_type == REGRESSION:
        raise ValueError("the score of a regression is no probability")
    return expit(logits) if problem_type == MULTI_LABEL else softmax(logits, axis=-1)
