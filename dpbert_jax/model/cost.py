"""What a plan costs: its share of the dense encoder's FLOPs, stem and planner included."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dpbert_jax.config import BertConfig, DPBertConfig

Length = int | Int[np.ndarray, " B"]  # tokens of a row, or of each row


def projection_flops(config: BertConfig, sequence_length: Length) -> Length:
    """Operations of one layer's products with weights, for one row of S tokens."""
    hidden, wide = config.hidden_size, config.intermediate_size
    return 2 * sequence_length * (4 * hidden * hidden + 2 * hidden * wide)


def layer_flops(config: BertConfig, sequence_length: Length) -> Length:
    """Floating-point operations of one layer's matrix products for one row of S tokens."""
    attention = 4 * sequence_length**2 * config.hidden_size  # scores and context
    return projection_flops(config, sequence_length) + attention


def planner_flops(config: DPBertConfig, sequence_length: Length) -> Length:
    """Operations of the planner for one row: the mean over tokens and the perceptron."""
    if config.planner is None:
        return 0
    hidden, width = config.bert.hidden_size, config.planner.hidden_size
    first, second = (2 * hidden + 1) * width, width * config.num_gates
    return 2 * sequence_length * hidden + 2 * (first + second)


def planner_share(config: DPBertConfig, sequence_length: Length) -> float | Float[np.ndarray, " B"]:
    """The planner's share of the dense encoder's FLOPs."""
    dense = config.bert.num_hidden_layers * layer_flops(config.bert, sequence_length)
    return planner_flops(config, sequence_length) / dense


def plan_cost(
    config: DPBertConfig, gates: Float[Array | np.ndarray, "B P"], sequence_length: Length
) -> Float[Array, " B"]:
    """Each row's share of the dense encoder's FLOPs; 1 + `planner_share` for a full plan.

    Takes gates, not the whole mask, so that a relaxed gate's gradient flows through; works on
    numpy arrays too.
    """
    run = config.stem_layers + jnp.sum(gates, axis=-1)
    return run / config.bert.num_hidden_layers + planner_share(config, sequence_length)
