"""The scores that a run ends with."""

from typing import Any

from dpbert_jax.data import TaskData
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.report import evaluate
from dpbert_jax.model import Model
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.asking import Asking
from dpbert_jax.training.task import validation_data

REPORTED_BUDGETS = (1.0, 0.75, 0.6)
REPORTED = ("score", "score_kept", "mean_layers", "cost", "distinct_plans")


def last_report(
    args: TrainArguments, task: TaskData, model: Model, teacher: Model, asking: Asking
) -> list[dict[str, Any]]:
    """Scores a run as it was saved; a line of values for each budget and validation split."""
    budgets = [b for b in REPORTED_BUDGETS if b == 1 or args.min_budget <= b <= args.max_budget]
    results = evaluate(
        model,
        teacher,
        EvalArguments(
            model_name_or_path=str(model.folder),
            budget=budgets,
            max_eval_samples=args.max_eval_samples,
            bf16=args.bf16,
            **asking.flags(),
            **validation_data(args, task),
        ),
        asking.length_buckets,
    )
    return [
        {
            "phase": f"eval/{result['split']}/{result['budget']:g}",
            "budget": result["budget"],
            **{f"eval_{name}": value for name, value in result["metrics"].items()},
            **{f"eval_{name}": result[name] for name in REPORTED},
        }
        for result in results
    ]
