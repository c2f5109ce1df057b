"""The stages of training, each a value; nothing else in training knows them by name.

dense: the plain encoder, which becomes the teacher. joint: planner and backbone together. final:
the encoder learns the hard plans of a planner that stays as it is. adapters: each depth learns what
it has of its own, on the same hard plans.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.attention import RELATIVE
from dpbert_jax.policies.dpbert import DPBert, Params, init_params
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.loop import Span
from dpbert_jax.training.objective import (
    dense_forward,
    final_forward,
    joint_forward,
    stage_loss,
)
from dpbert_jax.training.optimizer import make_optimizer
from dpbert_jax.training.step import TrainState, create_state


def nothing(config: DPBertConfig) -> frozenset[str]:
    """A stage that trains all parameters."""
    return frozenset()


def all_but_adapters(config: DPBertConfig) -> frozenset[str]:
    """What all depths share."""
    layers = (f"layer_{i}" for i in range(config.encoder.num_hidden_layers))
    relative = (RELATIVE,) if config.encoder.family.relative_attention else ()
    return frozenset(("planner", "embeddings", "head", *relative, *layers))


def plan_path(config: DPBertConfig) -> frozenset[str]:
    """The parts that a row's gate logits depend on: planner, embeddings, stem."""
    stem = (f"layer_{i}" for i in range(config.stem_layers))
    return frozenset(("planner", "embeddings", *stem))


@dataclass(frozen=True)
class Stage:
    """What one stage has of its own."""

    name: str  # in the log and in messages
    loss: Callable[..., Any]  # as `objective.stage_loss`, from the model on
    epochs: Callable[[TrainArguments], float]
    learning_rate: Callable[[TrainArguments], float]  # the backbone's peak
    frozen: Callable[[DPBertConfig], frozenset[str]] = nothing  # parts that it must not move
    needs_adapters: bool = False  # of each depth
    # Learns from the logits of the dense model. A stage that does not, makes that model: a
    # --teacher takes its place.
    needs_teacher: bool = False
    needs_planner: bool = False  # which is refitted behind it
    # Reads the thresholds of budgets, set as it begins. What they depend on has to be frozen: a
    # stage that goes on from its middle sets them anew.
    needs_calibration: bool = False
    keeps_best: bool = False  # --keep_best chooses among its epochs


DENSE = Stage(
    name="dense",
    loss=partial(stage_loss, dense_forward),
    epochs=lambda args: args.num_train_epochs,
    learning_rate=lambda args: args.learning_rate,
)
JOINT = Stage(
    name="joint",
    loss=partial(stage_loss, joint_forward),
    epochs=lambda args: args.num_planner_epochs,
    learning_rate=lambda args: args.student_learning_rate,
    needs_teacher=True,
    needs_planner=True,
)
FINAL = Stage(
    name="final",
    loss=partial(stage_loss, final_forward),
    epochs=lambda args: (
        args.num_planner_epochs if args.num_final_epochs is None else args.num_final_epochs
    ),
    learning_rate=lambda args: args.student_learning_rate,
    frozen=plan_path,
    needs_teacher=True,
    needs_planner=True,
    needs_calibration=True,
    keeps_best=True,
)
ADAPTERS = Stage(
    name="adapters",
    loss=partial(stage_loss, final_forward),
    epochs=lambda args: 0 if args.adapter_rank is None else args.num_adapter_epochs,
    learning_rate=lambda args: args.student_learning_rate,
    frozen=all_but_adapters,
    needs_adapters=True,
    needs_teacher=True,
    needs_planner=True,
    needs_calibration=True,
)
STAGES = (DENSE, JOINT, FINAL, ADAPTERS)  # in their order


def all_epochs(args: TrainArguments) -> float:
    """How often a run goes through its rows."""
    return sum(stage.epochs(args) for stage in STAGES if stage.needs_teacher or not args.teacher)


# The seeds of the first stages lie side by side; of later ones, so that theirs stay, far off.
FIRST_STAGES, STREAM = 3, 2**28


class PlannedStage(NamedTuple):
    """A stage of a run, and its steps."""

    stage: Stage
    span: Span


def plan_stages(steps_per_epoch: int, args: TrainArguments) -> list[PlannedStage]:
    """The stages that the flags ask for, one after the other."""
    planned: list[PlannedStage] = []
    first_step = 0
    for stage in STAGES:
        if args.teacher and not stage.needs_teacher:
            continue
        steps = math.ceil(stage.epochs(args) * steps_per_epoch)
        if steps:
            planned.append(PlannedStage(stage, Span(stage.name, first_step, steps)))
            first_step += steps
    return planned


def stage_seed(stage: Stage, seed: int) -> int:
    """The seed of a stage's rows, dropout and gates: stages draw from streams of their own."""
    number = STAGES.index(stage)
    return seed * FIRST_STAGES + number if number < FIRST_STAGES else number * STREAM + seed


def loss_of(stage: Stage, model: DPBert, params: Params, *about: Any) -> Any:
    """The stage's loss; no gradient is computed of what it must not move."""
    frozen = stage.frozen(model.config)
    held = {
        name: jax.lax.stop_gradient(part) if name in frozen else part
        for name, part in params.items()
    }
    return stage.loss(model, held, *about)


def stage_optimizer(
    params: Params, stage: Stage, span: Span, config: DPBertConfig, args: TrainArguments
) -> optax.GradientTransformation:
    """The optimizer of a stage, as the flags have it."""
    return make_optimizer(
        params,
        frozen=stage.frozen(config),
        num_steps=span.num_steps,
        learning_rate=stage.learning_rate(args),
        planner_learning_rate=args.planner_learning_rate,
        adapter_learning_rate=args.adapter_learning_rate,
        weight_decay=args.weight_decay,
        warmup_ratio=args.warmup_ratio,
        max_grad_norm=args.max_grad_norm,
    )


def abstract_state(planned: PlannedStage, config: DPBertConfig, args: TrainArguments) -> TrainState:
    """Shapes and types of a stage's state, for restoring."""

    def make() -> TrainState:
        params = init_params(config, args.seed)
        return create_state(params, stage_optimizer(params, *planned, config, args))

    return jax.eval_shape(make)
