"""From the first token's state to the answer."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.operations import ACTIVATIONS, DropoutKeys, Params, dense, dropout


def classify(
    config: EncoderConfig,
    params: Params,
    first: Float[Array, "B D"],
    dtype: DTypeLike,
    dropout_keys: DropoutKeys = None,
) -> tuple[Float[Array, "B D"], Float[Array, "B C"]]:
    """Pooled output and logits (float32): a product, the family's activation, and the classes."""
    family, rate = config.family, config.classifier_dropout
    rate = config.hidden_dropout_prob if rate is None else rate
    if family.head_dropout_first:
        first = dropout(first, rate, dropout_keys, site=1)
    pooled = ACTIVATIONS[family.head_activation](dense(params["pooler"], first, dtype))
    dropped = dropout(pooled, rate, dropout_keys, site=0)
    return pooled, dense(params["classifier"], dropped, dtype).astype(jnp.float32)
