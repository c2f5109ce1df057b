"""A run's answers under plans of one's choice: each row under each plan is run once.

Draws of one control, and controls of one budget, give most rows a plan that they have had before.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from dpbert_jax.evaluation.evaluate import Predictions
from dpbert_jax.inference import resolve_rule
from dpbert_jax.study.scorer import Scorer, run_split


class Answered:
    """The answers of a scorer's run to its split's N rows, as far as they were asked for."""

    def __init__(self, scorer: Scorer, made: Iterable[Predictions]) -> None:
        """`made` are the run's answers to the split that there are already."""
        self._scorer = scorer
        self._by_plan: dict[bytes, Predictions] = {}  # a row that has not had it costs NaN
        for answers in made:
            self._keep(np.arange(len(scorer.split)), answers)

    def under(self, layer_mask: np.ndarray) -> Predictions:
        """The rows' answers, each under a plan of its own; [N, L]. Their time is not known."""
        run, layer_mask = self._scorer.run, layer_mask.astype(np.int8)
        missing = np.flatnonzero(np.isnan(self._known(layer_mask).cost))
        if len(missing):
            execute, rule = run.model.executor("packed"), resolve_rule(run.model.config, 1.0)
            split = self._scorer.split.take(missing)
            self._keep(missing, run_split(run, split, execute, rule, layer_mask[missing]))
        return self._known(layer_mask)

    def _keep(self, rows: np.ndarray, answers: Predictions) -> None:
        for plan in np.unique(answers.layer_mask, axis=0):
            kept = self._by_plan.setdefault(plan.tobytes(), self._unknown())
            which = (answers.layer_mask == plan).all(axis=1)
            for of_all, of_some in ((kept.logits, answers.logits), (kept.cost, answers.cost)):
                of_all[rows[which]] = of_some[which]

    def _known(self, layer_mask: np.ndarray) -> Predictions:
        found = dataclasses.replace(self._unknown(), layer_mask=layer_mask)
        for plan in np.unique(layer_mask, axis=0):
            kept = self._by_plan.get(plan.tobytes(), found)
            which = (layer_mask == plan).all(axis=1)
            found.logits[which], found.cost[which] = kept.logits[which], kept.cost[which]
        return found

    def _unknown(self) -> Predictions:
        dense, nothing = self._scorer.dense, np.nan
        return Predictions(
            np.full_like(dense.logits, nothing),
            np.zeros_like(dense.layer_mask),
            np.full_like(dense.cost, nothing),
            nothing,
        )
