"""Trains the baselines of a finished run: static models and other methods' on its backbone.

They start from the run's dense model and are kept in its folder `baselines/`, where
`dpbert sweep` finds them.
"""

import logging
from dataclasses import dataclass, field

import numpy as np

from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, list_flag, parse
from dpbert_jax.study.controls import best_static_plan
from dpbert_jax.study.dact import train_dact
from dpbert_jax.study.early_exit import train_exits
from dpbert_jax.study.fit import held_out_losses, open_run
from dpbert_jax.study.smartbert import train_smartbert
from dpbert_jax.study.static import train_static
from dpbert_jax.study.trbert import ALONE, PLANNED, train_trbert

logger = logging.getLogger(__name__)
METHODS = ("static", "deebert", "pabee", "dact", "smartbert", ALONE, PLANNED)


@dataclass(frozen=True)
class BaselineArguments:
    model_name_or_path: str = field(
        metadata={"help": "Folder of a run; may be given first, without flag."}
    )
    methods: list[str] = list_flag(
        METHODS[:3],
        "Of static, deebert, pabee, dact (DACT-BERT), smartbert (its gates), trbert (TR-BERT), "
        "planned_trbert (with the run's planner).",
    )
    layers: list[int] | None = flag(
        None, "Layers of the static models, each a number. Default: half and two thirds."
    )
    tau: list[float] = list_flag(
        [0.05, 0.01, 0.005, 0.001],
        "Of dact: what a layer costs in its loss, a model for each; larger: fewer layers.",
    )
    penalty: list[float] = list_flag(
        [0.01, 0.02, 0.05, 0.1],
        "Of smartbert: what a layer's probability of running costs in its loss, a model for each.",
    )
    alpha: list[float] = list_flag(
        [0.2, 0.5, 1.0],
        "Of trbert and planned_trbert: what tokens cost in the reward, a model for each.",
    )

    def __post_init__(self) -> None:
        for name in ("tau", "penalty", "alpha"):
            weights = getattr(self, name)
            if not weights or min(weights) < 0:
                raise UserError(f"--{name}: give one or more weights, none below 0.")
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown:
            raise UserError(f"--methods {' '.join(unknown)}: must be of {list(METHODS)}.")

    def depths(self, layers: int) -> list[int]:
        """The numbers of layers asked for, of a model of so many."""
        if self.layers is None:
            return sorted({layers // 2, layers * 2 // 3})
        return self.layers


def train_baselines(args: BaselineArguments) -> None:
    run = open_run(args.model_name_or_path)
    layers, stem = run.model.config.encoder.num_hidden_layers, run.model.config.stem_layers
    depths = args.depths(layers)
    fewest = stem + max(run.model.config.min_gates, 1)
    for depth in depths:
        if not fewest <= depth <= layers:
            raise UserError(f"--layers {depth}: a static plan has {fewest} to {layers} layers.")
    methods = list(args.methods)
    if "deebert" in methods and run.model.config.encoder.is_regression:
        logger.info("deebert is left out: entropy needs classes, and this run is a regression.")
        methods.remove("deebert")
    if "static" in methods:
        plans, losses = held_out_losses(run)
        mean_losses = losses.mean(axis=0)
        for depth in depths:
            gates = best_static_plan(plans, mean_losses, depth - stem)
            folder = train_static(run, np.concatenate([np.ones(stem), gates]))
            logger.info("%s", folder)
    for method in ("deebert", "pabee"):
        if method in methods:
            logger.info("%s", train_exits(run, method))
    if "dact" in methods:
        for tau in args.tau:
            logger.info("%s", train_dact(run, tau))
    if "smartbert" in methods:
        for penalty in args.penalty:
            logger.info("%s", train_smartbert(run, penalty))
    for method in (ALONE, PLANNED):
        for alpha in args.alpha if method in methods else ():
            logger.info("%s", train_trbert(run, alpha, planned=method == PLANNED))


def main() -> None:
    train_baselines(parse(BaselineArguments, __doc__))
