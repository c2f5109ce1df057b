"""The points of the curve: planned ones, and controls at the planned ones' own mean cost."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.evaluate import Predictions, predict
from dpbert_jax.evaluation.metrics import agreement, compute_metrics, score, share_kept
from dpbert_jax.inference import Executor, Rule, resolve_rule
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.model import Model
from dpbert_jax.problem import ProblemType
from dpbert_jax.run_folder import BASELINES
from dpbert_jax.study.controls import (
    best_mix,
    exact_mix,
    mixed_plans,
    random_plans,
    shuffled_plans,
)
from dpbert_jax.study.early_exit import (
    entropy_exits,
    exit_logits,
    exits_cost,
    load_exits,
    patience_exits,
)
from dpbert_jax.study.fit import Run, mean_plan_losses
from dpbert_jax.study.sweep_arguments import TRAINED, SweepArguments

logger = logging.getLogger(__name__)

Point = dict[str, Any]
BISECTIONS = 40


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
            "cost": float(np.mean([draw.cost.mean() for draw in draws])),
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


def planned_points(args: SweepArguments, scorer: Scorer) -> tuple[list[Point], dict[float, Any]]:
    """A point for each budget and rule; and the first rule's predictions by budget."""
    run = scorer.run
    execute = run.model.executor("packed")
    points, by_budget = [], {}
    for plan_rule in args.plan_rules:
        for budget in args.shares():
            rule = resolve_rule(run.model.config, budget, plan_rule)
            made = run_split(run, scorer.split, execute, rule)
            points.append(scorer.point(plan_rule, budget, [made]))
            if plan_rule == args.plan_rules[0]:
                by_budget[budget] = made
    return points, by_budget


def plan_controls(
    args: SweepArguments, scorer: Scorer, planned: dict[float, Predictions]
) -> list[Point]:
    """Plans that do not look at the input, on the same weights at the same mean depth."""
    run, rows = scorer.run, len(scorer.split)
    execute = run.model.executor("packed")
    rule = resolve_rule(run.model.config, 1.0)
    losses = mean_plan_losses(run) if args.wanted("mix") else None
    points = []
    for budget, made in planned.items():
        if made.layer_mask.all():
            continue  # every layer runs for every input: there is nothing to control
        depth = float(made.layer_mask.sum(axis=1).mean())
        makers: dict[str, Callable[[int], np.ndarray]] = {}
        if args.wanted("random"):
            makers["random"] = lambda seed, d=depth: random_plans(run.model.config, rows, d, seed)
        if args.wanted("shuffled"):
            makers["shuffled"] = lambda seed, m=made: shuffled_plans(m.layer_mask, seed)
        if losses:
            mix = best_mix(*losses, depth - run.model.config.stem_layers)
            makers["mix"] = lambda seed, m=mix: mixed_plans(run.model.config, m, rows, seed)
        for variant, make in makers.items():
            draws = (
                run_split(run, scorer.split, execute, rule, make(args.seed + draw))
                for draw in range(args.draws)
            )
            points.append(scorer.point(variant, budget, draws))
    return points


def trained_controls(
    args: SweepArguments, scorer: Scorer, planned: dict[float, Predictions]
) -> list[Point]:
    """Static models, each at its own cost; early exits at the planned points' mean cost."""
    run, points = scorer.run, []
    folder = run.folder / BASELINES
    for control in TRAINED:
        if not args.wanted(control):
            continue
        found = sorted(folder.glob("static_*" if control == "static" else control))
        if not found:
            if args.controls != ["all"]:
                raise UserError(
                    f"--controls {control}: {folder} has none; train it with "
                    f"`dpbert baselines {run.folder} --methods {control}`."
                )
            logger.info("%s is left out: not trained for this run.", control)
        for path in found:
            if control == "static":
                points.append(_static_point(scorer, str(path)))
            else:
                points += _exit_points(scorer, control, path, planned)
    return points


def _static_point(scorer: Scorer, folder: str) -> Point:
    model = Model.from_pretrained(folder)
    config = model.config
    made = run_split(scorer.run, scorer.split, model.executor("packed"), resolve_rule(config, 1.0))
    share = config.encoder.num_hidden_layers / scorer.run.model.config.encoder.num_hidden_layers
    made = Predictions(made.logits, made.layer_mask, made.cost * share, made.seconds)
    return scorer.point("static", None, [made])


def _exit_points(
    scorer: Scorer, method: str, folder: Any, planned: dict[float, Predictions]
) -> list[Point]:
    """Thresholds are fitted to the cost on the very split that is scored: to their advantage."""
    run = scorer.run
    config, lengths = run.teacher.config, scorer.split.lengths
    problem = config.encoder.problem_type
    logits = exit_logits(
        config,
        load_exits(folder),
        scorer.split,
        batch_size=run.args.per_device_eval_batch_size,
        max_seq_length=run.args.max_seq_length,
    )

    def predictions(exits: np.ndarray) -> Predictions:
        mask = np.arange(logits.shape[1]) <= exits[:, None]
        chosen = logits[np.arange(len(logits)), exits]
        return Predictions(chosen, mask.astype(np.int8), exits_cost(config, exits, lengths), 0.0)

    def mean_cost(exits: np.ndarray) -> float:
        return float(exits_cost(config, exits, lengths).mean())

    points = []
    for budget, made in planned.items():
        wanted = float(made.cost.mean())
        if method == "deebert":
            exits = _bisected(lambda t: entropy_exits(logits, t, problem), mean_cost, wanted)
        elif config.encoder.is_regression:
            exits = _bisected(lambda t: patience_exits(logits, 1, t), mean_cost, wanted)
        else:
            exits = _mixed_patience(logits, problem, mean_cost, wanted)
        points.append(scorer.point(method, budget, [predictions(exits)]))
    return points


def _bisected(
    exits_at: Callable[[float], np.ndarray], mean_cost: Callable[[np.ndarray], float], wanted: float
) -> np.ndarray:
    """The exits at the threshold whose mean cost is the wanted one; a higher one leaves earlier."""
    low, high = 0.0, 10.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost(exits_at(middle)) > wanted else (low, middle)
    return exits_at(high)


def _mixed_patience(
    logits: np.ndarray,
    problem_type: ProblemType,
    mean_cost: Callable[[np.ndarray], float],
    wanted: float,
) -> np.ndarray:
    """Patience is a whole number: two of them, dealt out to rows at random, meet the cost."""
    patiences = range(1, logits.shape[1])
    every = [patience_exits(logits, each, None, problem_type) for each in patiences]
    costs = np.array([mean_cost(exits) for exits in every])
    above = min(int(np.searchsorted(costs, wanted)), len(costs) - 1)
    below = max(above - 1, 0)
    span = costs[above] - costs[below]
    share = np.clip((wanted - costs[below]) / span, 0, 1) if span else 1.0
    taken = exact_mix(share, len(logits), np.random.default_rng(0))
    return np.where(taken, every[above], every[below])
