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
from dpbert_jax.study.dact import check_dact, train_dact
from dpbert_jax.study.early_exit import train_exits
from dpbert_jax.study.fit import held_out_losses, open_run
from dpbert_jax.study.smartbert import train_smartbert
from dpbert_jax.study.static import train_static
from dpbert_jax.study.trbert import ALONE, PLANNED, check_trbert, train_trbert

logger = logging.getLogger(__name__)
METHODS = ("static", "deebert", "pabee", "dact", "smartbert", ALONE, PLANNED)
# Flags of some methods only: whose they are, and the defaults.
KNOBS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "layers": (("static",), ()),
    "tau": (("dact",), (0.05, 0.01, 0.005, 0.001)),
    "penalty": (("smartbert",), (0.01, 0.02, 0.05, 0.1)),
    "alpha": ((ALONE, PLANNED), (0.2, 0.5, 1.0)),
}


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
    tau: list[float] | None = flag(
        None,
        "Of dact: what a layer costs in its loss, a model for each; larger: fewer layers. "
        "Default: 0.05 0.01 0.005 0.001.",
    )
    penalty: list[float] | None = flag(
        None,
        "Of smartbert: what a layer's probability of running costs in its loss, a model for "
        "each. Default: 0.01 0.02 0.05 0.1.",
    )
    alpha: list[float] | None = flag(
        None,
        "Of trbert and planned_trbert: what tokens cost in the reward, a model for each. "
        "Default: 0.2 0.5 1.",
    )

    def __post_init__(self) -> None:
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown:
            raise UserError(f"--methods {' '.join(unknown)}: must be of {list(METHODS)}.")
        for name, (methods, _) in KNOBS.items():
            values = getattr(self, name)
            if values is not None and not set(methods) & set(self.methods):
                raise UserError(
                    f"--{name} is of {' and '.join(methods)}, which --methods does not name."
                )
            if name != "layers" and values is not None and (not values or min(values) < 0):
                raise UserError(f"--{name}: give one or more weights, none below 0.")

    def knob(self, name: str) -> list[float]:
        """A knob's values."""
        given = getattr(self, name)
        return list(KNOBS[name][1]) if given is None else given

    def depths(self, fewest: int, layers: int) -> list[int]:
        """The numbers of layers of the static models, of a model of so many.

        Raises:
            UserError: a static plan cannot have as many.
        """
        if self.layers is None:
            return sorted({max(layers // 2, fewest), max(layers * 2 // 3, fewest)})
        for depth in self.layers:
            if not fewest <= depth <= layers:
                raise UserError(f"--layers {depth}: a static plan has {fewest} to {layers} layers.")
        return self.layers


def train_baselines(args: BaselineArguments) -> None:
    """Trains what was asked for; refuses before it trains anything."""
    run, methods = open_run(args.model_name_or_path), list(args.methods)
    config = run.model.config
    stem, layers = config.stem_layers, config.encoder.num_hidden_layers
    depths = args.depths(stem + max(config.min_gates, 1), layers) if "static" in methods else []
    if "deebert" in methods and config.encoder.is_regression:
        logger.info("deebert is left out: entropy needs classes, and this run is a regression.")
        methods.remove("deebert")
    if "dact" in methods:
        check_dact(run)
    for method in {ALONE, PLANNED} & set(methods):
        check_trbert(run, planned=method == PLANNED)
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
    for tau in args.knob("tau") if "dact" in methods else ():
        logger.info("%s", train_dact(run, tau))
    for penalty in args.knob("penalty") if "smartbert" in methods else ():
        logger.info("%s", train_smartbert(run, penalty))
    for method in (ALONE, PLANNED):
        for alpha in args.knob("alpha") if method in methods else ():
            logger.info("%s", train_trbert(run, alpha, planned=method == PLANNED))


def main() -> None:
    train_baselines(parse(BaselineArguments, __doc__))
