"""Scores a run at one or several budgets, with the layers that a plan leaves out really skipped.

Only parses flags; the work is dpbert_jax.evaluation.report.
"""

from dpbert_jax.cli import parse, run_script
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.report import evaluate_run


def main() -> None:
    evaluate_run(parse(EvalArguments, __doc__, script="eval.py"))


if __name__ == "__main__":
    run_script(main)
