"""The planned points of the curve, and controls on the same weights at their own mean depth."""

from collections.abc import Callable

import numpy as np

from dpbert_jax.evaluation.evaluate import Predictions
from dpbert_jax.inference import resolve_rule
from dpbert_jax.study.answered import Answered
from dpbert_jax.study.controls import (
    PlansByLength,
    best_mix,
    mixed_plans,
    random_plans,
    shuffled_plans,
)
from dpbert_jax.study.fit import held_out_losses
from dpbert_jax.study.scorer import Point, Scorer, Variant, run_split
from dpbert_jax.study.sweep_arguments import SweepArguments


def planned_points(
    args: SweepArguments, scorer: Scorer
) -> tuple[list[Variant], dict[float, Predictions]]:
    """A point for each budget and rule; and the first rule's predictions by budget."""
    run = scorer.run
    execute = run.model.executor("packed")
    points, by_budget = [], {}
    for plan_rule in args.plan_rules:
        for budget in args.shares():
            rule = resolve_rule(run.model.config, budget, plan_rule)
            made = run_split(run, scorer.split, execute, rule)
            point = scorer.point(plan_rule, budget, [made])
            points.append(Variant(point, run.model.executor, rule))
            if plan_rule == args.plan_rules[0]:
                by_budget[budget] = made
    return points, by_budget


def plan_controls(
    args: SweepArguments, scorer: Scorer, planned: dict[float, Predictions]
) -> list[Point]:
    """Plans of no planner, on the same weights at the same mean depth, as budgets count it."""
    run, rows = scorer.run, len(scorer.split)
    answered = Answered(scorer, planned.values())
    table = held_out_losses(run) if args.wanted("mix") or args.wanted("length") else None
    points = []
    for budget, made in planned.items():
        if made.layer_mask.all():
            continue  # every layer runs for every input: there is nothing to control
        # Dealt out whatever the rows' lengths, so many layers cost what the planned ones do.
        depth = scorer.mean_cost(made.layer_mask.sum(axis=1))
        makers: dict[str, Callable[[int], np.ndarray]] = {}
        if args.wanted("random"):
            makers["random"] = lambda seed, d=depth: random_plans(run.model.config, rows, d, seed)
        if args.wanted("shuffled"):
            makers["shuffled"] = lambda seed, m=made: shuffled_plans(
                run.model.config, m.layer_mask, scorer.split.lengths, seed
            )
        gates = depth - run.model.config.stem_layers
        if table and args.wanted("mix"):
            mix = best_mix(table[0], table[1].mean(axis=0), gates)
            makers["mix"] = lambda seed, m=mix: mixed_plans(run.model.config, m, rows, seed)
        if table and args.wanted("length"):
            by_length = PlansByLength.of(*table, run.rows.held_out.lengths)
            makers["length"] = lambda seed, b=by_length, g=gates: b.plans_of(
                run.model.config, scorer.split.lengths, g, seed
            )
        for variant, make in makers.items():
            draws = (answered.under(make(args.seed + draw)) for draw in range(args.draws))
            points.append(scorer.point(variant, budget, draws))
    return points
