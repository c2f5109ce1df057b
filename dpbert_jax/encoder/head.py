"""From the first token's state to the answer."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.adapters import Slots, low_rank, own_values
from dpbert_jax.encoder.operations import ACTIVATIONS, DropoutKeys, Params, dense, dropout


def classify(
    config: EncoderConfig,
    params: Params,
    first: Float[Array, "B D"],
    dtype: DTypeLike,
    dropout_keys: DropoutKeys = None,
    *,
    adapters: Params | None = None,
    slots: Slots | None = None,
) -> tuple[Float[Array, "B D"], Float[Array, "B C"]]:
    """Pooled output and logits (float32): a product, the family's activation, and the classes.

    With `adapters` (`adapters.head_shapes`), those of each row's slot are added.
    """
    family, rate = config.family, config.classifier_dropout
    rate = config.hidden_dropout_prob if rate is None else rate
    if family.head_dropout_first:
        first = dropout(first, rate, dropout_keys, site=1)
    pooled = dense(params["pooler"], first, dtype)
    if adapters is not None and slots is not None:
        pooled = pooled + own_values(adapters["pooler"]["bias"], slots).astype(dtype)
        if "down" in adapters["pooler"]:
            pooled = pooled + low_rank(adapters["pooler"], first.astype(dtype), slots)
    pooled = ACTIVATIONS[family.head_activation](pooled)
    dropped = dropout(pooled, rate, dropout_keys, site=0)
    logits = dense(params["classifier"], dropped, dtype)
    if adapters is not None and slots is not None:
        own = adapters["classifier"]
        kernel = own_values(own["kernel"], slots).astype(dtype)  # [B, D, C]
        logits = logits + jnp.einsum("bd,bdc->bc", dropped, kernel)
        logits = logits + own_values(own["bias"], slots).astype(dtype)
    return pooled, logits.astype(jnp.float32)
