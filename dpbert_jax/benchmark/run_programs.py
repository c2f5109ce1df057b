"""The programs that a run compiles, each as a function and the shapes that it is called with.

What can be said of them without running them (that they lower for a platform, that they compile for
a device, how much memory and how many kernels they take) is said of this list.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dpbert_jax.config import AdapterConfig, Calibration, DPBertConfig, EncoderConfig, PlannerConfig
from dpbert_jax.data import INPUTS
from dpbert_jax.export.stablehlo import stablehlo_program
from dpbert_jax.inference.executors import in_graph_program
from dpbert_jax.inference.masked import forward_masked
from dpbert_jax.inference.packed import PIECE_TOKENS, run_tiles
from dpbert_jax.inference.path import prepare
from dpbert_jax.policies.dpbert import DPBert, init_params
from dpbert_jax.policies.protocol import Planned
from dpbert_jax.policies.rule import Rule
from dpbert_jax.training.expected_loss import mean_loss
from dpbert_jax.training.objective import threshold_grid
from dpbert_jax.training.optimizer import make_optimizer
from dpbert_jax.training.plan_bank import EXHAUSTIVE_GATES, all_plans, drawn_plans
from dpbert_jax.training.plan_table import STATE_ROWS, tree_program
from dpbert_jax.training.stage import STAGES, Stage, loss_of
from dpbert_jax.training.step import create_state, make_gradients, make_update

ANY_CALIBRATION = Calibration((0.4, 1.0), (1.0, -6.0))
HELD_OUT_ROWS = 256  # of the refit's program: any number will do

Shape = jax.ShapeDtypeStruct


class Program(NamedTuple):
    """A program of a run."""

    name: str
    make: Callable[[Any], Callable[..., Any]]  # a device -> the function that runs on it
    arguments: tuple[Any, ...]  # their shapes


class Sizes(NamedTuple):
    """What a run's programs depend on, besides the model."""

    rows: int  # of a batch
    length: int  # tokens of a row, padding included
    platform: str = "gpu"  # whose chunk sizes they have


def run_programs(encoder: EncoderConfig, sizes: Sizes) -> Iterator[Program]:
    """All of them, in float32 and bfloat16: training, refit, evaluation, export."""
    for stage in STAGES:
        config = _config(encoder, stage)
        for dtype in (jnp.float32, jnp.bfloat16):
            yield _gradients(stage, config, sizes, dtype)
        yield _update(stage, config)
    dense = (STAGES[0], _config(encoder, STAGES[0]), sizes)
    for dtype in (jnp.float32, jnp.bfloat16):
        yield _gradients(*dense, dtype, checkpointing=True)
    planned = DPBertConfig(encoder, PlannerConfig(), ANY_CALIBRATION)
    yield _table(planned, sizes)
    yield _refit(planned)
    for dtype in (jnp.float32, jnp.bfloat16):
        yield from _evaluation(planned, sizes, dtype)
    yield _export(planned, sizes)


def _config(encoder: EncoderConfig, stage: Stage) -> DPBertConfig:
    if not stage.needs_planner:
        return DPBertConfig(encoder)
    adapters = AdapterConfig() if stage.needs_adapters else None
    return DPBertConfig(encoder, PlannerConfig(), ANY_CALIBRATION, adapters=adapters)


def _params(config: DPBertConfig) -> Any:
    return jax.eval_shape(lambda: init_params(config, 0))


def _named(what: str, dtype: DTypeLike) -> str:
    return f"{what}, {jnp.dtype(dtype).name}"


def _gradients(
    stage: Stage,
    config: DPBertConfig,
    sizes: Sizes,
    dtype: DTypeLike,
    checkpointing: bool = False,
) -> Program:
    words = Shape((1, 1, sizes.rows, sizes.length), jnp.int32)
    numbers, weights = (Shape((1, 1, sizes.rows), kind) for kind in (jnp.int32, jnp.float32))
    shard = {**dict.fromkeys(INPUTS, words), "positions": numbers}
    shard |= {"labels": numbers, "weights": weights}
    if stage.needs_teacher:
        classes = config.encoder.num_labels
        shard["teacher_logits"] = Shape((1, 1, sizes.rows, classes), jnp.float32)
    thresholds = jax.eval_shape(lambda: threshold_grid(config))
    about = (Shape((1,), jnp.float32), Shape((2,), jnp.uint32), Shape((), jnp.float32), thresholds)
    loss = partial(loss_of, stage, DPBert(config, dtype, checkpointing))
    name = _named(f"{stage.name}: gradients", dtype)
    return Program(
        f"{name}, checkpointed" if checkpointing else name,
        lambda device: make_gradients(loss, 1, [device]),
        (_params(config), shard, *about),
    )


def _update(stage: Stage, config: DPBertConfig) -> Program:
    params = _params(config)
    optimizer = make_optimizer(
        params,
        frozen=stage.frozen(config),
        num_steps=1000,
        learning_rate=5e-5,
        planner_learning_rate=1e-2,
        adapter_learning_rate=1e-3,
        weight_decay=0.01,
        warmup_ratio=0.1,
        max_grad_norm=1.0,
    )
    state = jax.eval_shape(lambda: create_state(init_params(config, 0), optimizer))
    return Program(f"{stage.name}: update", lambda _: make_update(optimizer), (state, params))


def _plans(config: DPBertConfig) -> np.ndarray:
    if config.num_gates <= EXHAUSTIVE_GATES:
        return all_plans(config)
    return drawn_plans(config, np.zeros(config.num_gates, np.float32), seed=0)


def _table(config: DPBertConfig, sizes: Sizes) -> Program:
    plans = _plans(config)
    tree = tree_program(config, jnp.float32, tuple(map(tuple, plans.tolist())))
    rows = max(STATE_ROWS // len(plans), 1)
    weights = _weights(config, jnp.float32)
    inputs = [Shape((rows, sizes.length), jnp.int32)] * len(INPUTS)
    return Program("refit: table of all plans", lambda _: tree, (weights, *inputs))


def _refit(config: DPBertConfig) -> Program:
    """Compiled for the host's CPU wherever there is one."""
    plans, rows = _plans(config), HELD_OUT_ROWS
    slope = jax.grad(partial(mean_loss, config), argnums=1)
    sizes = (plans.shape, (rows, config.num_gates), (rows, len(plans)), (rows,), ())
    shapes = tuple(Shape(size, jnp.float32) for size in sizes)
    return Program("refit: slope of the loss (host)", lambda _: slope, shapes)


def _weights(config: DPBertConfig, dtype: DTypeLike) -> Any:
    arranged = partial(prepare, config, Planned(config), dtype=dtype)
    return jax.eval_shape(arranged, _params(config))


def _evaluation(config: DPBertConfig, sizes: Sizes, dtype: DTypeLike) -> Iterator[Program]:
    """The executors; of `packed`, which is many, the layer on as many tiles as it takes at once."""
    policy, weights = Planned(config), _weights(config, dtype)

    def called(rows: int) -> dict[str, Any]:
        inputs: dict[str, Any] = dict.fromkeys(INPUTS, Shape((rows, sizes.length), jnp.int32))
        number: Any = partial(Shape, (), weak_type=True)
        rule = Rule(number(jnp.float32), number(jnp.float32), number(jnp.int32))
        return {**inputs, "rule": rule, "forced": Shape((rows, config.num_gates), jnp.float32)}

    def keyed(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda weights, about: function(weights, **about)

    masked = keyed(partial(forward_masked, config, policy, dtype))
    every = (_params(config), called(sizes.rows))
    yield Program(_named("masked", dtype), lambda _: masked, every)
    for name, rows in (("cond", 1), ("chunked", sizes.rows)):
        run = keyed(in_graph_program(config, policy, name, dtype, sizes.platform, None))
        about = (weights, called(rows))
        yield Program(_named(name, dtype), lambda _, run=run: run, about)

    tokens = PIECE_TOKENS[sizes.platform]
    states = Shape((tokens, config.encoder.hidden_size), dtype)
    tiles = Shape((max(tokens // sizes.length, 1), sizes.length), jnp.int32)
    layer = partial(run_tiles, config.encoder)
    about = (weights.layers[0], states, tiles, tiles, weights.relative)
    yield Program(_named("packed: a layer", dtype), lambda _: layer, about)


def _export(config: DPBertConfig, sizes: Sizes) -> Program:
    exported = stablehlo_program(config, init_params(config, 0))
    ids = Shape((1, sizes.length), jnp.int32)
    inputs = [ids] * len(config.encoder.inputs)
    return Program("export: StableHLO", lambda _: exported.call, (*inputs, Shape((), jnp.float32)))
