"""What a layer costs, in floating-point operations."""

import numpy as np
from jaxtyping import Array, Float, Int

from dpbert_jax.config import EncoderConfig

# Tokens of a row, or of each row; in JAX as floats: FLOPs of long rows leave 32-bit integers.
Length = int | Int[np.ndarray, " B"] | Float[Array | np.ndarray, " B"]


def projection_flops(config: EncoderConfig, sequence_length: Length) -> Length:
    """Operations of one layer's products with weights, for one row of S tokens."""
    hidden, wide = config.hidden_size, config.intermediate_size
    return 2 * sequence_length * (4 * hidden * hidden + 2 * hidden * wide)


def layer_flops(config: EncoderConfig, sequence_length: Length) -> Length:
    """Floating-point operations of one layer's matrix products for one row of S tokens."""
    attention = 4 * sequence_length**2 * config.hidden_size  # scores and context
    return projection_flops(config, sequence_length) + attention
