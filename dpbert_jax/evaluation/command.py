"""Scores a run at one or several budgets, with the layers that a plan leaves out really skipped."""

from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.report import evaluate_run
from dpbert_jax.flags import parse


def main() -> None:
    evaluate_run(parse(EvalArguments, __doc__, script="eval.py"))
