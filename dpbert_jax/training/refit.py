"""Refitting the planner: on a table of how every plan answers every held-out row.

Gates that were trained together with the backbone depend on the input, but gain little from it: a
single sampled plan tells little about a row, and rows that the backbone trains on look easy under
every plan. The table tells all of it, for rows that nothing was trained on. The planner then learns
by its exact expected loss, with no sampling.

A few hundred rows do not carry a free fit: a perceptron descending on that loss gave plans far
worse than ones that ignore the input, and, stopped early, hardly better ones. What they carry is
one step from those plans, along the steepest descent, as far as cross-validation follows it
(docs/experiments.md).
"""

import logging
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.operations import Params
from dpbert_jax.policies.cost import row_weights
from dpbert_jax.policies.planner import LENGTH, bounded, judge
from dpbert_jax.training.expected_loss import mean_loss, mean_plan_shares
from dpbert_jax.training.plan_bank import (
    EXHAUSTIVE_GATES,
    UNUSED,
    best_chain,
    cheapest_chain,
    depth_of,
)
from dpbert_jax.training.plan_table import PlanTable

logger = logging.getLogger(__name__)

RANK = 32  # principal components of the features: a few hundred rows tell no more apart
TEMPERATURE = 0.3  # near the hard rule of inference; at 1, leaking gates hide what a plan is worth
CHAIN_SPACE = 2.0  # logits between a layer and the next, at first
DESCENT_STEPS, DESCENT_LEARNING_RATE = 200, 5e-2
FOLDS = 5
# In logits, for a row one standard deviation off the mean.
STRIDES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
NEARLY_HARD = 0.03  # strides are judged as inference will have it: short ones tell rows apart, too
STIR = 1e-3  # logits: among rows that are alike otherwise something must say who goes deeper
# What is read of a row: its length, and the principal components of all that a planner may read.
OF_LENGTH, OF_ALL = slice(0, 1), slice(1, None)


class _Rows(NamedTuple):
    """Held-out rows: what is read of them, every plan's loss, and what each counts in a cost."""

    read: Float[np.ndarray, "N R"]
    losses: Float[np.ndarray, "N K"]
    weights: Float[np.ndarray, " N"]

    def at(self, which: np.ndarray) -> "_Rows":
        return _Rows(*(array[which] for array in self))

    def mean_loss(
        self, config: DPBertConfig, plans: Array, gate_logits: Array, temperature: float
    ) -> Float[Array, ""]:
        table = map(jnp.asarray, self[1:])
        return mean_loss(config, plans, gate_logits, *table, temperature)


class _Choice(NamedTuple):
    """What of a row is read, how far it is followed, and what rows left out lost by that."""

    reads: slice = OF_LENGTH
    strides: tuple[float, float] = (0.0, 0.0)  # for depth and for layers
    losses: tuple[float, ...] = ()  # by the length alone, by all, blind to the input


def refit_planner(
    config: DPBertConfig, table: PlanTable, losses: Float[np.ndarray, "N K"], seed: int
) -> Params:
    """A planner's parameters of small expected loss over the trained range of budgets.

    First logits that do not look at the input: a chain of plans, each a layer deeper. Then a step
    that does, in two parts with strides of their own: how deep a row should go (all gates alike),
    and which layers it should run (what each gate wants beyond that); and how far apart the layers
    belong now that rows are told apart. All that twice: behind a first step, in depth alone, rows
    have depths of their own, and small plans are those of long texts, say; so the chain is chosen
    anew, for the rows that have each depth, and the step taken from there.

    The step is tried by the length alone and by all that a planner reads, and the one taken that
    serves rows better that are left out; after one by the length content says which of the rows of
    about one length go first, no more (docs/experiments.md has what this is worth).
    """
    basis, mean = _whitening(table.features), table.features.mean(axis=0)
    read = (table.features - mean) @ basis
    rows = _Rows(read, losses, np.asarray(row_weights(config, table.lengths)))
    chain = _blind_chain(config, table.plans, losses.mean(axis=0))
    # Who chooses layers leaves the bank, and what a plan outside it is worth is not known.
    layers = STRIDES if config.num_gates <= EXHAUSTIVE_GATES else (0.0,)
    planner, _ = _told_apart(config, table.plans, chain, rows, (0.0,), seed)
    chain = _served_chain(config, table.plans, planner, rows)
    planner, choice = _told_apart(config, table.plans, chain, rows, layers, seed)
    _report(choice)
    kernel = basis @ planner["input"]["kernel"]
    return {**planner, "input": {"kernel": kernel, "bias": -mean @ kernel}}


def _told_apart(
    config: DPBertConfig,
    plans: Float[np.ndarray, "K P"],
    chain: Float[np.ndarray, " P"],
    rows: _Rows,
    layer_strides: tuple[float, ...],
    seed: int,
) -> tuple[Params, _Choice]:
    """A planner that tells rows apart by a step from a chain, and how the step was chosen."""
    every, choice = jnp.asarray(plans), _Choice()
    if len(rows.read) >= FOLDS:
        choice = _cross_validated(config, every, chain, rows, layer_strides, seed)
    step = _steepest(config, every, chain, rows, choice.reads)
    planner = _stepped(config, chain, step, *choice.strides)
    return _chain_descended(config, every, planner, rows), choice


def _served_chain(
    config: DPBertConfig, plans: Float[np.ndarray, "K P"], planner: Params, rows: _Rows
) -> Float[np.ndarray, " P"]:
    """The logits of the best chain for the depths that this planner gives to each row."""
    logits = judge(config, planner, jnp.asarray(rows.read))
    about = (jnp.asarray(plans), logits, jnp.asarray(rows.weights))
    shares = np.asarray(mean_plan_shares(config, *about, NEARLY_HARD))
    depth = depth_of(plans)
    has = shares @ (depth[:, None] == np.arange(config.num_gates + 1))  # [N, depths]
    lost = ((has[:, depth] + UNUSED) * rows.losses).mean(axis=0)
    # Layers exchange their places; how far apart the places are is settled behind it.
    rank = plans[cheapest_chain(config, plans, lost)].sum(axis=0).argsort(kind="stable").argsort()
    moved = np.sort(planner["output"]["bias"])[rank]
    planner = {**planner, "output": {**planner["output"], "bias": moved}}
    return _chain_descended(config, jnp.asarray(plans), planner, rows)["output"]["bias"]


def _report(choice: _Choice) -> None:
    if not choice.losses:
        return
    read = "the length alone" if choice.reads == OF_LENGTH else "all"
    logger.info(
        "Planner refitted: reads %s. Loss on rows left out %.4f by the length alone, %.4f by all, "
        "%.4f blind to the input (strides: depth %g, layers %g).",
        *(read if any(choice.strides) else "nothing", *choice.losses, *choice.strides),
    )


def _blind_chain(
    config: DPBertConfig,
    plans: Float[np.ndarray, "K P"],
    mean_losses: Float[np.ndarray, " K"],
) -> Float[np.ndarray, " P"]:
    """The best logits for all rows alike, before they are bounded.

    The best chain's order of layers, spread evenly, and from there downhill. Downhill from no
    order at all ended far from the best one with 11 planned layers (docs/experiments.md).
    """
    order = plans[best_chain(config, plans, mean_losses)].sum(axis=0)
    even = (CHAIN_SPACE * (order - order.mean())).astype(np.float32)
    planner = _stepped(config, even, np.zeros((1, 2 + len(even)), np.float32), 0.0, 0.0)
    nothing_read = np.zeros((1, 1), np.float32)
    mean_row = _Rows(nothing_read, mean_losses[None], np.ones(1, np.float32))
    planner = _chain_descended(config, jnp.asarray(plans), planner, mean_row)
    return planner["output"]["bias"]


def _chain_descended(
    config: DPBertConfig,
    plans: Float[Array, "K P"],
    planner: Params,
    rows: _Rows,
) -> Params:
    """A planner whose chain went downhill, its layers still in order.

    What it says of one row against another is kept.
    """
    optimizer = optax.adam(DESCENT_LEARNING_RATE)
    rank = planner["output"]["bias"].argsort(kind="stable").argsort()

    def of_chain(chain: Any) -> Params:
        return {**planner, "output": {**planner["output"], "bias": chain}}

    def loss(chain: Array) -> Array:
        logits = judge(config, of_chain(chain), jnp.asarray(rows.read))
        return rows.mean_loss(config, plans, logits, TEMPERATURE)

    def advance(_: Any, carried: Any) -> Any:
        chain, state = carried
        updates, state = optimizer.update(jax.grad(loss)(chain), state)
        # Out of order, plans would be ones that a bank may not hold.
        moved: Any = optax.apply_updates(chain, updates)
        return jnp.sort(moved)[rank], state

    @jax.jit
    def descend(chain: Array) -> Array:
        return jax.lax.fori_loop(0, DESCENT_STEPS, advance, (chain, optimizer.init(chain)))[0]

    return of_chain(np.asarray(descend(jnp.asarray(planner["output"]["bias"]))))


def _cross_validated(
    config: DPBertConfig,
    plans: Array,
    chain: Float[np.ndarray, " P"],
    rows: _Rows,
    layer_strides: tuple[float, ...],
    seed: int,
) -> _Choice:
    """What to read, and the strides for depth and for layers, that serve left out rows best."""
    fold = np.random.default_rng(seed).permutation(len(rows.read)) % FOLDS
    tried = list(product(STRIDES, layer_strides))
    found = np.zeros((2, len(tried)))
    for out, (number, reads) in product(range(FOLDS), enumerate((OF_LENGTH, OF_ALL))):
        left_out = rows.at(fold == out)
        step = _steepest(config, plans, chain, rows.at(fold != out), reads)
        for at, strides in enumerate(tried):
            planner = _stepped(config, chain, step, *strides)
            logits = judge(config, planner, jnp.asarray(left_out.read))
            loss = left_out.mean_loss(config, plans, logits, NEARLY_HARD)
            found[number, at] += len(left_out.read) / len(rows.read) * float(loss)
    of_length, of_all = found.min(axis=1)
    reads, best = (OF_ALL, found[1]) if of_all < of_length else (OF_LENGTH, found[0])
    return _Choice(reads, tried[best.argmin()], (of_length, of_all, found[0, 0]))


def _steepest(
    config: DPBertConfig,
    plans: Array,
    chain: Float[np.ndarray, " P"],
    rows: _Rows,
    reads: slice,
) -> Float[np.ndarray, "R Q"]:
    """Directions from the chain in which the loss falls most.

    For all gates alike by all that is read, for all gates alike by `reads`, and for each gate by
    `reads`: what every row's logits want, regressed on whitened features. Each part is scaled so
    that what it says of a row has unit variance, over rows (and gates).
    """
    assert config.planner is not None
    logits = bounded(config.planner, jnp.asarray(np.tile(chain, (len(rows.read), 1))))
    slope = jax.grad(lambda x: rows.mean_loss(config, plans, x, TEMPERATURE))(logits)
    wanted = -np.asarray(slope)
    wanted -= wanted.mean(axis=0)
    alike = wanted.mean(axis=1, keepdims=True)
    read = rows.read - rows.read.mean(axis=0)  # of rows without some

    def direction(of: slice, wanted: np.ndarray) -> np.ndarray:
        part = np.zeros((read.shape[1], wanted.shape[1]), np.float32)
        part[of] = read[:, of].T @ wanted
        spread = np.sqrt(np.mean(np.square(read @ part)))
        return part / max(spread, 1e-12)

    parts = direction(OF_ALL, alike), direction(reads, alike), direction(reads, wanted - alike)
    return np.concatenate(parts, axis=1)


def _stepped(
    config: DPBertConfig,
    chain: Float[np.ndarray, " P"],
    step: Float[np.ndarray, "R Q"],
    depth: float,
    layers: float,
) -> Params:
    """The planner that strides along the parts of a step; it reads whitened features.

    A direction is one tanh unit of slope 1 around the mean that says at most 2 standard deviations
    of a row: outliers are held back. The other units are idle.
    """
    assert config.planner is not None
    width, gates = config.planner.hidden_size, config.num_gates
    said = np.zeros((width, gates), np.float32)
    said[0], said[1] = STIR, depth
    said[2 : 2 + gates] = layers * np.eye(gates)
    kernel = np.zeros((len(step), width), np.float32)
    kernel[:, : 2 + gates] = step / 2
    return {
        "input": {"kernel": kernel, "bias": np.zeros(width, np.float32)},
        "output": {"kernel": 2 * width**0.5 * said, "bias": chain},
    }


def _whitening(features: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "F R"]:
    """What to read of centred features: the length, of variance 1, and R - 1 principal components.

    Each component has variance 1 / (R - 1), so that their squares add up to the length's.
    """
    centred = features - features.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    spread = spread / len(features) ** 0.5
    rank = max(min(RANK, int((spread > 1e-5 * spread[0]).sum())), 1)
    scale = np.maximum(spread[:rank], 1e-12)  # a single row has no spread at all
    length = np.zeros((features.shape[1], 1))
    deviation = centred[:, LENGTH].std()
    length[LENGTH] = 1 / deviation if deviation > 1e-5 else 0.0  # rows may be of one length
    components = directions[:rank].T / scale / rank**0.5
    return np.concatenate([length, components], axis=1).astype(np.float32)
