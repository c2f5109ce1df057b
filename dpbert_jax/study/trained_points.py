"""The points of what `dpbert baselines` trained: static models and other policies."""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.evaluate import Predictions
from dpbert_jax.inference import Rule, make_executor, resolve_rule
from dpbert_jax.model import Model
from dpbert_jax.policies import POLICIES
from dpbert_jax.policies.early_exit import exits_cost
from dpbert_jax.policies.rule import budget_range
from dpbert_jax.problem import ProblemType
from dpbert_jax.run_folder import BASELINES
from dpbert_jax.study.controls import exact_mix
from dpbert_jax.study.early_exit import entropy_exits, exit_logits, load_exits, patience_exits
from dpbert_jax.study.scorer import Scorer, Variant, run_split
from dpbert_jax.study.sweep_arguments import BANK, TRAINED, SweepArguments
from dpbert_jax.study.trbert import ALONE, PLANNED

logger = logging.getLogger(__name__)

BISECTIONS = 40
# What of training settles what they spend.
KNOBS = {"dact": "tau", "smartbert": "penalty", ALONE: "alpha", PLANNED: "alpha"}


def trained_controls(
    args: SweepArguments, scorer: Scorer, planned: dict[float, Predictions]
) -> list[Variant]:
    """Those without a knob, each at its own cost; early exits at the planned points'."""
    run, points = scorer.run, []
    folder = run.folder / BASELINES
    for control in TRAINED:
        if not args.wanted(control):
            continue
        found = sorted(folder.glob(f"{control}*"))
        if not found:
            logger.info("%s is left out: not trained for this run.", control)
        for path in found:
            if control == "static":
                points.append(_static_point(scorer, path))
            elif control == PLANNED:
                points += _planned_points(scorer, path, planned)
            elif control in KNOBS:
                points.append(_own_point(scorer, control, path))
            else:
                points += _exit_points(scorer, control, path, planned)
    return points


def check_trained(args: SweepArguments, folder: Path) -> None:
    """Refuses controls that were asked for by name but never trained for a run, in its folder.

    Raises:
        UserError: there are none.
    """
    for control in (*TRAINED, BANK):
        if control not in args.controls:
            continue
        method = "static" if control == BANK else control
        if not any((folder / BASELINES).glob(f"{method}*")):
            raise UserError(
                f"--controls {control}: {folder} has no {method} models; train some with "
                f"`dpbert baselines {folder} --methods {method}`."
            )


def run_static(scorer: Scorer, folder: Path) -> tuple[Model, Predictions]:
    """A static model and its answers; their cost is a share of the run's dense FLOPs."""
    model = Model.from_pretrained(folder)
    rule = resolve_rule(model.config, 1.0)
    made = run_split(scorer.run, scorer.split, model.executor("packed"), rule)
    layers = model.config.encoder.num_hidden_layers
    share = layers / scorer.run.model.config.encoder.num_hidden_layers
    return model, dataclasses.replace(made, cost=made.cost * share)


def _static_point(scorer: Scorer, folder: Path) -> Variant:
    model, made = run_static(scorer, folder)
    point = scorer.point("static", None, [made])
    return Variant(point, model.executor, resolve_rule(model.config, 1.0))


def _own_point(scorer: Scorer, method: str, folder: Path) -> Variant:
    """At what its training has made it spend."""
    config, rule = scorer.run.teacher.config, Rule(1.0, 0.0, 0)
    if method == ALONE:
        executor = Model.from_pretrained(folder).executor
    else:
        policy, params = POLICIES[method](config), load_exits(folder)
        executor = partial(make_executor, config=config, params=params, policy=policy)
    made = run_split(scorer.run, scorer.split, executor("packed"), rule)
    point = scorer.point(method, None, [made])
    return Variant({**point, "trained_at": trained_at(folder, method)}, executor, rule)


def trained_at(folder: Path, method: str) -> str:
    """The knob of a model's training and its value, which are in its folder's name."""
    return f"{KNOBS[method]} {folder.name.removeprefix(f'{method}_')}"


def rules_at_cost(
    scorer: Scorer, folder: Path, model: Model, planned: dict[float, Predictions]
) -> dict[float, Rule]:
    """For each planned point's budget, the rule by which a model of a dial has its mean cost."""
    rules, least = {}, (budget_range(model.config) or (0.0, 1.0))[0]
    for budget, made in planned.items():
        wanted = min(scorer.mean_cost(made.cost), 1.0)
        if wanted < least:
            logger.info("%s has no budget of %.3f: its least is %.3f.", folder, wanted, least)
            continue
        rules[budget] = resolve_rule(model.config, wanted)
    return rules


def _planned_points(
    scorer: Scorer, folder: Path, planned: dict[float, Predictions]
) -> list[Variant]:
    """At budgets that are the planned points' mean cost, split between layers and tokens."""
    model, points = Model.from_pretrained(folder), []
    execute = model.executor("packed")
    for budget, rule in rules_at_cost(scorer, folder, model, planned).items():
        point = scorer.point(PLANNED, budget, [run_split(scorer.run, scorer.split, execute, rule)])
        point["trained_at"] = trained_at(folder, PLANNED)
        points.append(Variant(point, model.executor, rule))
    return points


def _exit_points(
    scorer: Scorer, method: str, folder: Path, planned: dict[float, Predictions]
) -> list[Variant]:
    """Executed with layers really skipped, at thresholds that make the planned points' mean cost.

    They are fitted on the very split that is scored: to the exits' advantage.
    """
    run, split = scorer.run, scorer.split
    config, params = run.teacher.config, load_exits(folder)
    policy, problem = POLICIES[method](config), config.encoder.problem_type
    logits = exit_logits(
        config,
        params,
        split,
        batch_size=run.args.per_device_eval_batch_size,
        max_seq_length=run.args.max_seq_length,
    )
    executor = partial(make_executor, config=config, params=params, policy=policy)
    execute = executor("packed")

    def mean_cost(exits: np.ndarray) -> float:
        return scorer.mean_cost(exits_cost(config, exits + 1, split.lengths))

    points = []
    for budget, made in planned.items():
        wanted = scorer.mean_cost(made.cost)
        if method == "pabee" and not config.encoder.is_regression:
            threshold: Any = _mixed_patience(logits, problem, mean_cost, wanted)
        else:
            exits_at = partial(entropy_exits, logits, problem_type=problem)
            if method == "pabee":
                exits_at = partial(patience_exits, logits, 1)
            threshold = _bisected(lambda t, at=exits_at: mean_cost(at(t)), wanted)
        rule = Rule(budget, threshold, 0)
        point = scorer.point(method, budget, [run_split(run, split, execute, rule)])
        points.append(Variant(point, executor, rule))
    return points


def _bisected(mean_cost_at: Callable[[float], float], wanted: float) -> float:
    """The threshold whose mean cost is the wanted one; a higher one leaves earlier."""
    low, high = 0.0, 10.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost_at(middle) > wanted else (low, middle)
    return high


def _mixed_patience(
    logits: np.ndarray,
    problem_type: ProblemType,
    mean_cost: Callable[[np.ndarray], float],
    wanted: float,
) -> Float[np.ndarray, "N 1"]:
    """Patience is a whole number: two of them, dealt out to rows at random, meet the cost."""
    patiences = range(1, logits.shape[1])
    every = [patience_exits(logits, each, None, problem_type) for each in patiences]
    costs = np.array([mean_cost(exits) for exits in every])
    above = min(int(np.searchsorted(costs, wanted)), len(costs) - 1)
    below = max(above - 1, 0)
    span = costs[above] - costs[below]
    share = np.clip((wanted - costs[below]) / span, 0, 1) if span else 1.0
    taken = exact_mix(share, len(logits), np.random.default_rng(0))
    patience = np.where(taken, patiences[above], patiences[below])
    return patience[:, None].astype(np.float32)
