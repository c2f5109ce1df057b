"""What a point of the curve is, how it is run, and how it is scored."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.evaluation.evaluate import Predictions, predict
from dpbert_jax.evaluation.metrics import agreement, compute_metrics, score, share_kept
from dpbert_jax.inference import Executor, Rule, resolve_rule
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.policies.cost import mean_cost
from dpbert_jax.study.fit import Run

Point = dict[str, Any]


class Variant(NamedTuple):
    """A point of the curve, and how it is run: for what is timed."""

    point: Point
    executor: Callable[[str], Executor]  # by name
    rule: Rule


class Scorer(NamedTuple):
    """A validation split and the dense model's score on it."""

    run: Run
    split: TokenizedSplit
    dense: Predictions

    def metrics(self, logits: np.ndarray) -> dict[str, float]:
        spec = self.run.task.spec
        assert self.split.labels is not None
        return compute_metrics(spec, logits, self.split.labels)

    def agreement(self, logits: np.ndarray) -> float:
        """With the dense model's answers."""
        return agreement(logits, self.dense.logits, self.run.task.spec.problem_type)

    def mean_cost(self, cost: np.ndarray) -> float:
        """As the run's budgets count it."""
        return mean_cost(self.run.model.config, cost, self.split.lengths)

    def point(self, variant: str, budget: float | None, made: Iterable[Predictions]) -> Point:
        """The mean over draws of a variant, with the standard deviation of its score."""
        draws = list(made)
        metrics = [self.metrics(draw.logits) for draw in draws]
        scores = [score(found) for found in metrics]
        return {
            "variant": variant,
            "budget": budget,
            "metrics": {k: float(np.mean([m[k] for m in metrics])) for k in metrics[0]},
            "score": float(np.mean(scores)),
            "score_deviation": float(np.std(scores, ddof=1)) if len(draws) > 1 else None,
            "score_kept": share_kept(
                float(np.mean(scores)), score(self.metrics(self.dense.logits))
            ),
            "agreement": float(np.mean([self.agreement(draw.logits) for draw in draws])),
            "mean_layers": float(np.mean([draw.layer_mask.sum(axis=1).mean() for draw in draws])),
            "cost": float(np.mean([self.mean_cost(draw.cost) for draw in draws])),
            "distinct_plans": max(len(np.unique(draw.layer_mask, axis=0)) for draw in draws),
        }


def open_scorer(run: Run, split: TokenizedSplit) -> Scorer:
    execute = run.teacher.executor("packed")
    rule = resolve_rule(run.teacher.config, 1.0)
    return Scorer(run, split, run_split(run, split, execute, rule))


def run_split(
    run: Run,
    split: TokenizedSplit,
    execute: Executor,
    rule: Rule,
    layer_mask: np.ndarray | None = None,
    warm_up: bool = False,
) -> Predictions:
    """Whole chunks at once, as `packed` likes it."""
    return predict(
        execute,
        rule,
        execute.config,
        split,
        batch_size=CHUNK_ROWS,
        max_seq_length=run.args.max_seq_length,
        layer_mask=layer_mask,
        warm_up=warm_up,
    )
