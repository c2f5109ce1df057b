"""The layers as TR-BERT trains them: tokens that are gone are masked, and all of them computed.

With them the expert's view of a row: how much each token's state matters to the loss.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import INPUTS, TokenizedSplit, batches
from dpbert_jax.encoder.attention import attention_bias
from dpbert_jax.encoder.embeddings import embed
from dpbert_jax.encoder.head import classify
from dpbert_jax.encoder.modules import Layer
from dpbert_jax.encoder.operations import DropoutKeys, Params, fold_rows
from dpbert_jax.model import Model
from dpbert_jax.policies.tokens import selector_layers, stay_logits, with_first
from dpbert_jax.training.objective import row_losses


def run_layers(
    config: DPBertConfig,
    dtype: DTypeLike,
    params: Params,
    states: Float[Array, "B S D"],
    attention_mask: Int[Array, "B S"],
    layers: range,
    dropout_keys: DropoutKeys,
    gates: Float[Array, "B L"] | None = None,
) -> Float[Array, "B S D"]:
    """Layers one after the other, on the tokens of one mask, mixed by gates where there are any."""
    layer: Any = Layer(config.encoder, dtype)
    bias = attention_bias(attention_mask)
    for i in layers:
        keys = fold_rows(dropout_keys, 1 + i)
        output = layer.apply({"params": params[f"layer_{i}"]}, states, bias, keys)
        if gates is None:
            states = output
        else:
            gate = gates[:, i, None, None].astype(states.dtype)
            states = gate * output + (1 - gate) * states
    return states


def first_states(
    config: DPBertConfig,
    dtype: DTypeLike,
    params: Params,
    batch: dict[str, Array],
    dropout_keys: DropoutKeys,
) -> Float[Array, "B S D"]:
    """What the first selector reads."""
    ids, mask, types = (batch[name] for name in INPUTS)
    keys = fold_rows(dropout_keys, 0)
    states = embed(config.encoder, params["embeddings"], ids, types, dtype, dropout_keys=keys)
    before = range(selector_layers(config)[0])
    return run_layers(config, dtype, params, states, mask, before, dropout_keys)


def answer_with(
    config: DPBertConfig,
    dtype: DTypeLike,
    params: Params,
    states: Float[Array, "B S D"],
    attention_mask: Int[Array, "B S"],
    choose: Any,
    dropout_keys: DropoutKeys = None,
    gates: Float[Array, "B L"] | None = None,
) -> tuple[Float[Array, "B C"], list[Int[Array, "B S"]], list[Float[Array, "B S"]]]:
    """From the first selector on: logits, and each selector's mask and what it says.

    `choose(number, stay_logits, attention_mask)` gives who stays, true or false [B, S].
    """
    layers, masks, said = config.encoder.num_hidden_layers, [], []
    ends = [*selector_layers(config), layers]
    for number, (first, last) in enumerate(pairwise(ends)):
        selector = params[f"selector_{number}"]
        said.append(stay_logits(selector, jax.lax.stop_gradient(states), dtype))
        stays = choose(number, said[-1], attention_mask)
        attention_mask = with_first(stays, attention_mask)
        masks.append(attention_mask)
        about = (attention_mask, range(first, last), dropout_keys, gates)
        states = run_layers(config, dtype, params, states, *about)
    keys = fold_rows(dropout_keys, 1 + layers)
    return classify(config.encoder, params["head"], states[:, 0], dtype, keys)[1], masks, said


def importance(
    config: DPBertConfig,
    dtype: DTypeLike,
    params: Params,
    states: Float[Array, "B S D"],
    attention_mask: Int[Array, "B S"],
    labels: Array,
    gates: Float[Array, "B L"] | None = None,
) -> Float[Array, "B S"]:
    """The length of the loss's gradient at each token's state, where all tokens stay."""

    def loss(states: Array) -> Array:
        about = (states, attention_mask, every_token, None, gates)
        logits = answer_with(config, dtype, params, *about)[0]
        return row_losses(logits, labels, None, config.encoder.problem_type).sum()

    gradient = jax.grad(loss)(states)
    return jnp.where(attention_mask > 0, jnp.linalg.norm(gradient, axis=-1), -1.0)


def every_token(number: int, said: Array, attention_mask: Array) -> Array:
    return attention_mask > 0


def most_important(
    scores: Float[Array, "B S"], count: Float[Array, " B"], attention_mask: Int[Array, "B S"]
) -> Array:
    """The `count` tokens of each row that are left and score highest; true or false [B, S]."""
    order = jnp.argsort(jnp.where(attention_mask > 0, -scores, jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1, stable=True)
    return rank < jnp.round(count)[:, None]


def first_stay_logits(
    model: Model, split: TokenizedSplit, batch_size: int
) -> Float[np.ndarray, " T"]:
    """What the first selector says of each token of a split."""
    config, dtype, found = model.config, model.dtype, []

    @jax.jit
    def ask(params: Params, batch: dict[str, Array]) -> Array:
        return stay_logits(
            params["selector_0"], first_states(config, dtype, params, batch, None), dtype
        )

    pad = config.encoder.pad_token_id
    for batch in batches(split, batch_size, model.max_seq_length, pad_token_id=pad):
        said = np.asarray(ask(model.params, {name: batch[name] for name in INPUTS}))
        found.append(said[(batch["attention_mask"] > 0) & (batch["weights"][:, None] > 0)])
    return np.concatenate(found)
