"""The bank: static models of several depths, each fine-tuned as such, dealt out at random.

What the one checkpoint has to be as good as. No model of the bank is smaller by more than its
layers, and none shares a weight with another.
"""

import logging

import numpy as np

from dpbert_jax.evaluation.evaluate import Predictions
from dpbert_jax.study.controls import exact_mix
from dpbert_jax.study.scorer import Point, Scorer
from dpbert_jax.study.static import static_folders
from dpbert_jax.study.sweep_arguments import BANK, SweepArguments
from dpbert_jax.study.trained_points import run_static

logger = logging.getLogger(__name__)


def bank_points(
    args: SweepArguments, scorer: Scorer, planned: dict[float, Predictions]
) -> list[Point]:
    """At the planned points' cost, a mix of the two static models next to it.

    The dense model is that of all layers.
    """
    folders = static_folders(scorer.run.folder)
    if not args.wanted(BANK) or not folders:
        return []
    layers = scorer.run.model.config.encoder.num_hidden_layers
    models = {layers: scorer.dense}
    for folder in folders:
        model, made = run_static(scorer, folder)
        models[model.config.encoder.num_hidden_layers] = made
    points = []
    for budget, made in planned.items():
        depth = min(scorer.mean_cost(made.cost) * layers, layers)
        if depth < min(models):
            logger.info("The bank has no model of %.2f layers or fewer: budget %g.", depth, budget)
            continue
        cheap = max(number for number in models if number <= depth)
        dear = min(number for number in models if number >= depth)
        share = (depth - cheap) / (dear - cheap) if dear > cheap else 0.0
        draws = [_dealt(models, cheap, dear, share, args.seed + draw) for draw in range(args.draws)]
        points.append(scorer.point(BANK, budget, draws))
    return points


def _dealt(
    models: dict[int, Predictions], cheap: int, dear: int, share: float, seed: int
) -> Predictions:
    """Each row's answer from one of two models, a `share` of them from the dearer one."""
    few, many = models[cheap], models[dear]
    taken = exact_mix(share, len(few.cost), np.random.default_rng(seed)) > 0
    depth = np.where(taken, dear, cheap)
    return Predictions(
        np.where(taken[:, None], many.logits, few.logits),
        (np.arange(max(models)) < depth[:, None]).astype(np.int8),
        np.where(taken, many.cost, few.cost),
        0.0,
    )
