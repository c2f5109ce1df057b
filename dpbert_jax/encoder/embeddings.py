"""From token ids to what the first layer reads."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.operations import DropoutKeys, Params, dense, dropout, layer_norm
from dpbert_jax.encoder.word_table import look_up

WORDS = "word_embeddings"


def positions_of(config: EncoderConfig, input_ids: Any) -> Any:
    """The position of each token, int [B or 1, S]; of numpy arrays and of JAX's.

    RoBERTa and MPNet count over the tokens that are no padding, and leave that at its own id: by
    the ids, not by the mask. A batch must be padded with the model's padding id.
    """
    if not config.family.positions_after_padding:
        xp = np if isinstance(input_ids, np.ndarray) else jnp
        return xp.arange(input_ids.shape[1])[None, :]
    real = (input_ids != config.pad_token_id).astype("int32")
    return real.cumsum(axis=1).astype("int32") * real + config.pad_token_id


def table_sizes(config: EncoderConfig) -> dict[str, int]:
    """Rows of each plain table of embeddings; all are `token_size` wide."""
    words = {} if config.compression else {WORDS: config.vocab_size}
    sizes = {**words, "position_embeddings": config.max_position_embeddings}
    if config.family.token_types:
        sizes["token_type_embeddings"] = config.type_vocab_size
    return sizes


def embed(
    config: EncoderConfig,
    params: Params,
    input_ids: Int[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
    dtype: DTypeLike,
    *,
    position_ids: Int[Array, "#B S"] | None = None,
    dropout_keys: DropoutKeys = None,
) -> Float[Array, "B S D"]:
    """Sum of word, position and, where there are any, segment embeddings, normalised.

    Where they are narrower than the hidden states (ELECTRA), then projected. `position_ids`:
    default: `positions_of` the ids.
    """
    places: Any = positions_of(config, input_ids) if position_ids is None else position_ids

    def table(name: str, ids: Array) -> Array:
        return jnp.take(jnp.asarray(params[name]["embedding"], dtype), ids, axis=0)

    if config.compression:
        states = look_up(config.compression, params[WORDS], input_ids).astype(dtype)
    else:
        states = table(WORDS, input_ids)
    states = states + table("position_embeddings", places)
    if config.family.token_types:
        states = states + table("token_type_embeddings", token_type_ids)
    states = layer_norm(params["layer_norm"], states, config.layer_norm_eps, dtype)
    states = dropout(states, config.hidden_dropout_prob, dropout_keys, site=0)
    return dense(params["projection"], states, dtype) if config.projects else states
