"""The plan table: what every plan of a bank says of every row of a split, at one tree's cost.

Plans that begin alike share what they have in common, so all 2^P plans of P layers take 2^P - 1
layer runs a row, instead of P 2^(P-1) one after the other (31 instead of 80 for P = 5).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import INPUTS, TokenizedSplit, batches
from dpbert_jax.encoder.attention import score_bias
from dpbert_jax.encoder.embeddings import embed
from dpbert_jax.encoder.inference_layer import run_layer
from dpbert_jax.encoder.operations import Params
from dpbert_jax.inference.path import Weights, prepare
from dpbert_jax.policies.planner import planner_features
from dpbert_jax.policies.protocol import Planned

STATE_ROWS = 512  # rows times plans in memory at once


class PlanTable(NamedTuple):
    """N rows under K plans."""

    plans: np.ndarray  # gates [K, P]
    logits: np.ndarray  # [N, K, C]
    features: np.ndarray  # [N, F], what the planner reads of a row
    lengths: np.ndarray  # [N], tokens


def make_table(
    config: DPBertConfig,
    params: Params,
    split: TokenizedSplit,
    plans: np.ndarray,
    *,
    max_seq_length: int,
    length_buckets: Sequence[int] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> PlanTable:
    """Runs all plans on all rows of a split; compiles once for each length bucket."""
    weights = prepare(config, Planned(config), params, dtype)
    uncalibrated = dataclasses.replace(config, calibration=None)
    program = tree_program(uncalibrated, dtype, tuple(map(tuple, plans.tolist())))
    batch_size = max(STATE_ROWS // len(plans), 1)
    logits = np.zeros((len(split), len(plans), config.encoder.num_labels), np.float32)
    features = np.zeros((len(split), 2 * config.encoder.hidden_size + 1), np.float32)
    pad = config.encoder.pad_token_id
    made = batches(
        split, batch_size, max_seq_length, pad_token_id=pad, length_buckets=length_buckets
    )
    for batch in made:
        real = batch["weights"] > 0
        rows = batch["indices"][real]
        inputs = (batch[k] for k in INPUTS)
        found, read = program(weights, *inputs)
        logits[rows], features[rows] = np.asarray(found)[real], np.asarray(read)[real]
    return PlanTable(plans, logits, features, split.lengths)


@lru_cache(maxsize=8)
def tree_program(
    config: DPBertConfig, dtype: DTypeLike, plans: tuple[tuple[float, ...], ...]
) -> Any:
    """The compiled tree of these plans, [K][P]: (weights, *INPUTS) -> `_run_tree`'s results.

    Kept, since the tables of a run's stages differ in nothing but their weights.
    """
    return jax.jit(partial(_run_tree, config, dtype, np.array(plans, np.float32)))


class _Level(NamedTuple):
    """One layer of the tree: which states run it, and where each state of the next level is from.

    `source` counts the states before the layer first, then those that ran it.
    """

    run: np.ndarray
    slots: np.ndarray  # of the states that run it
    source: np.ndarray


def _levels(keys: np.ndarray) -> Iterator[_Level]:
    """The layers' levels; a key is a plan's slot and its gates: one slot shares no state."""
    before = np.unique(keys[:, :1], axis=0)
    for i in range(1, keys.shape[1]):
        after = np.unique(keys[:, : i + 1], axis=0)
        parent = (after[:, None, :i] == before[None]).all(axis=2).argmax(axis=1)
        runs = after[:, i] > 0
        run = np.unique(parent[runs])
        ran = len(before) + np.searchsorted(run, parent)
        yield _Level(run, before[run, 0].astype(int), np.where(runs, ran, parent))
        before = after


def _run_tree(
    config: DPBertConfig,
    dtype: DTypeLike,
    plans: np.ndarray,
    weights: Weights,
    input_ids: Int[Array, "B S"],
    attention_mask: Int[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
) -> tuple[Float[Array, "B K C"], Float[Array, "B F"]]:
    """Logits under every plan, and the planner's features."""
    rows = input_ids.shape[0]
    encoder = config.encoder
    states = embed(encoder, weights.embeddings, input_ids, token_type_ids, dtype)
    states = states.transpose(2, 0, 1)
    bias = score_bias(encoder, weights.relative, attention_mask)
    layer: Callable[..., Any] = partial(run_layer, config.encoder)
    for stem in weights.layers[: config.stem_layers]:
        states = layer(stem, states, bias)
    features = planner_features(states.transpose(1, 2, 0), attention_mask)
    # Without adapters every plan is of one slot.
    policy = Planned(config)
    slots = policy.slots(plans) if policy.slots else np.zeros(len(plans), np.int32)
    keys = np.column_stack([slots, plans])
    states = jnp.repeat(states[None], len(np.unique(slots)), axis=0)  # [plans so far, D, B, S]
    for i, level in enumerate(_levels(keys)):
        parts = [states]
        for slot in np.unique(level.slots):
            run = level.run[level.slots == slot]
            ran = states[run].transpose(1, 0, 2, 3)  # [D, plans that run, B, S]
            shape = ran.shape
            own = [jax.tree.map(itemgetter(slice(slot, slot + 1)), a) for a in weights.adapters[i:]]
            about = (ran.reshape(shape[0], -1, shape[3]), jnp.tile(bias, (len(run), 1, 1, 1)))
            ran = layer(weights.layers[config.stem_layers + i], *about, *own[:1])
            parts.append(ran.reshape(shape).transpose(1, 0, 2, 3))
        states = jnp.concatenate(parts)[level.source]
    first = states[..., 0].transpose(0, 2, 1).reshape(-1, states.shape[1])  # [K * B, D]
    ordered, order = np.unique(keys, axis=0, return_inverse=True)  # the last level is sorted
    own = jnp.repeat(ordered[:, 0].astype(int), rows)
    logits = policy.answer(weights.policy, weights.head, first, dtype, own)
    logits = logits.reshape(len(states), rows, -1)
    return logits[order.reshape(-1)].transpose(1, 0, 2), features
