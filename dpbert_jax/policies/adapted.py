"""Adapters beside a planner: which layers and depths have them, and which ones a plan uses."""

from typing import Any

import numpy as np
from jaxtyping import Float

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.adapters import (
    AdapterSize,
    adapter_flops,
    head_shapes,
    layer_shapes,
)
from dpbert_jax.encoder.flops import Length, layer_flops


def adapter_shapes(config: DPBertConfig) -> dict[str, dict[str, Any]]:
    """Shapes of all adapters, of each planned layer and of the head; none where there are none."""
    if config.adapters is None:
        return {}
    size = AdapterSize(config.adapted_depths, config.adapters.rank)
    planned = range(config.stem_layers, config.encoder.num_hidden_layers)
    layers = {f"layer_{i}": layer_shapes(config.encoder, size) for i in planned}
    return {**layers, "head": head_shapes(config.encoder, size)}


def adapter_slots(config: DPBertConfig, gates: Any) -> Any:
    """Which adapters each plan [B, P] uses, by its number of layers; the last, none, for all.

    Of numpy arrays and of JAX's; int [B].
    """
    depth = (gates.sum(axis=-1) + 0.5).astype("int32")
    # A plan that was forced may be below the floor: it has the adapters of the lowest depth.
    return (depth - config.min_gates).clip(0)


def adapter_share(config: DPBertConfig, sequence_length: Length) -> float | Float[np.ndarray, " B"]:
    """What adapters add to a layer, as a share of its FLOPs; those of the head count as nothing."""
    if config.adapters is None:
        return 0.0
    added = adapter_flops(config.encoder, config.adapters.rank, sequence_length)
    return added / layer_flops(config.encoder, sequence_length)
