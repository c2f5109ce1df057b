"""What a plan costs: its share of the dense encoder's FLOPs, stem and planner included."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dpbert_jax.config import FLOPS, ROWS, DPBertConfig
from dpbert_jax.encoder.flops import Length, layer_flops
from dpbert_jax.policies.adapted import adapter_share
from dpbert_jax.policies.planner import planner_flops

# What a mean cost is, of the dense FLOPs, to be read in a report.
COST_UNITS = {ROWS: "mean of the inputs' own shares", FLOPS: "share of all inputs' together"}


def planner_share(config: DPBertConfig, sequence_length: Length) -> float | Float[np.ndarray, " B"]:
    """The planner's share of the dense encoder's FLOPs."""
    dense: Any = config.encoder.num_hidden_layers * layer_flops(config.encoder, sequence_length)
    planner: Any = planner_flops(config, sequence_length)
    return planner / dense


def cost_unit(config: DPBertConfig) -> str:
    """What a mean cost is a mean of: a key of `COST_UNITS`."""
    return (config.planner or config).cost_unit


def row_weights(
    config: DPBertConfig, lengths: Int[Array | np.ndarray, " N"]
) -> Float[Array | np.ndarray, " N"]:
    """What each row counts in a mean cost (`PlannerConfig.cost_unit`): 1, or its dense FLOPs.

    In units of a row of one token's; only their ratios matter.
    """
    if cost_unit(config) == ROWS:
        return np.ones(lengths.shape, np.float32)
    flops: Any = layer_flops(config.encoder, lengths.astype(np.float32))
    return flops / layer_flops(config.encoder, 1)


def mean_cost(
    config: DPBertConfig, cost: Shaped[np.ndarray, " N"], lengths: Int[np.ndarray, " N"]
) -> float:
    """The mean that a budget is held against, of rows' costs or numbers of layers."""
    return float(np.average(cost, weights=np.asarray(row_weights(config, lengths))))


def plan_cost(
    config: DPBertConfig, gates: Float[Array | np.ndarray, "B P"], sequence_length: Length
) -> Float[Array | np.ndarray, " B"]:
    """Each row's share of the dense encoder's FLOPs; 1 + `planner_share` for a full plan.

    Takes gates, not the whole mask, so that a relaxed gate's gradient flows through. Of NumPy's
    arrays NumPy computes it: JAX would compile a program for each number of rows.
    """
    planned = gates.sum(axis=-1)
    layers = config.encoder.num_hidden_layers
    run = config.stem_layers + planned
    cost = run / layers + planner_share(config, sequence_length)
    if config.adapters is None:
        return cost
    return cost + (run < layers) * planned * adapter_share(config, sequence_length) / layers
