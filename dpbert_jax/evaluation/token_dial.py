"""The dial of a model that drops tokens: what its pairs of thresholds cost.

Two thresholds decide what an input spends: which layers run, and which tokens stay. A dial is a
path from all of both to the least of both (`study.token_dial` finds it); what each of its knots
costs is the budget that it is asked for by.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dpbert_jax.config import Calibration
from dpbert_jax.data import TokenizedSplit
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.evaluate import Predictions, predict
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.model import Model
from dpbert_jax.policies.cost import mean_cost
from dpbert_jax.policies.rule import Rule

logger = logging.getLogger(__name__)
Asked = Callable[[float, float], tuple[Predictions, float]]


class Knot(NamedTuple):
    """A pair of thresholds, and the mean cost with them."""

    threshold: float
    stay: float
    cost: float


def measured_dial(model: Model, split: TokenizedSplit, inputs: str) -> Calibration:
    """The model's own dial, its budgets as these inputs cost them."""
    dial = model.config.calibration
    assert dial is not None and dial.stays is not None
    asked = asking(model, split)
    pairs = zip(reversed(dial.thresholds), reversed(dial.stays), strict=True)
    return dial_of([knot(asked, *pair) for pair in pairs], inputs)


def dial_of(knots: Sequence[Knot], inputs: str) -> Calibration:
    """A dial of knots from the dearest on; one that is not cheaper than those before is left out.

    Raises:
        UserError: nothing is saved at the last of them.
    """
    falling: list[Knot] = [knots[0]._replace(cost=1.0)]
    for knot in knots[1:]:
        if knot.cost < falling[-1].cost:
            falling.append(knot)
    if left_out := len(knots) - len(falling):
        about = (left_out, len(knots), inputs)
        logger.info("%d of %d knots save nothing on %s, and are left out.", *about)
    if len(falling) < 2:
        raise UserError("No tokens and no layers are saved on these inputs: there is no dial.")
    thresholds, stays, costs = zip(*reversed(falling), strict=True)
    return Calibration(costs, thresholds, inputs, stays)


def asking(model: Model, split: TokenizedSplit) -> Asked:
    """A function from a pair of thresholds to the answers and their mean cost."""
    execute, config = model.executor("packed"), model.config

    def asked(threshold: float, stay: float) -> tuple[Predictions, float]:
        rule = Rule(1.0, float(threshold), config.num_gates, float(stay))
        made = predict(
            execute,
            rule,
            config,
            split,
            batch_size=CHUNK_ROWS,
            max_seq_length=model.max_seq_length,
            warm_up=False,
        )
        return made, float(mean_cost(config, made.cost, split.lengths))

    return asked


def knot(asked: Asked, threshold: float, stay: float) -> Knot:
    return Knot(float(threshold), float(stay), asked(threshold, stay)[1])
