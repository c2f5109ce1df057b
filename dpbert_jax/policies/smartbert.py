"""SmartBERT's skipping gates: each layer asks, of the states that come to it, whether it runs.

Hu, Zhu, Li, Tang (IJCAI 2023, 2303.09266), "SmartBERT: A Promotion of Dynamic Early Exiting
Mechanism for Accelerating BERT Inference". A gate squeezes the states to 128 with tanh, lets the
first token attend to all of them with two heads, and reads one number off it: the layer is skipped
where its sigmoid, the probability of skipping, reaches one half. These are its gates alone: its
exits and its contrastive loss between layers are not here.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.attention import attention_bias
from dpbert_jax.encoder.flops import layer_flops
from dpbert_jax.encoder.head import classify
from dpbert_jax.encoder.operations import Params, dense
from dpbert_jax.policies.gates import FREE
from dpbert_jax.policies.rule import Rule

GATE_SIZE = 128
GATE_HEADS = 2


def gate_products(hidden_size: int) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each of a gate's products."""
    size = GATE_SIZE
    inner = {name: (size, size) for name in ("query", "key", "value", "output")}
    return {"squeeze": (hidden_size, size), **inner, "gate": (size, 1)}


def run_logits(
    gate: Params,
    states: Float[Array, "B S D"],
    attention_mask: Int[Array, "B S"],
    dtype: DTypeLike,
) -> Float[Array, " B"]:
    """Whether a layer runs, before the sigmoid: minus the logit of its being skipped."""
    squeezed = jnp.tanh(dense(gate["squeeze"], states, dtype))

    def heads(name: str, inputs: Array) -> Array:  # [B, S, 128] -> [B, S, 2, 64]
        return dense(gate[name], inputs, dtype).reshape(*inputs.shape[:-1], GATE_HEADS, -1)

    query = heads("query", squeezed[:, :1])[:, 0]  # only the first token's answer is read
    scores = jnp.einsum("bhk,bshk->bhs", query, heads("key", squeezed)) / query.shape[-1] ** 0.5
    scores = scores.astype(jnp.float32) + attention_bias(attention_mask)[:, 0]
    shares = jax.nn.softmax(scores).astype(dtype)
    context = jnp.einsum("bhs,bshk->bhk", shares, heads("value", squeezed))
    output = dense(gate["output"], context.reshape(-1, GATE_SIZE), dtype)
    return dense(gate["gate"], output, dtype)[:, 0].astype(jnp.float32)


@dataclass(frozen=True)
class SmartBert:
    """A layer runs where its gate's logit is above the rule's `threshold`; its own is 0."""

    config: DPBertConfig

    @property
    def looks(self) -> tuple[int, ...]:
        return tuple(range(self.config.encoder.num_hidden_layers))

    @property
    def slots(self) -> None:
        return None  # it learns a row's depth on the way

    @property
    def obeys(self) -> bool:
        return True

    def weights(self, params: Params) -> Params:
        return {name: part for name, part in params.items() if name.startswith("gate_")}

    def begin(self, rows: Any) -> Float[Array, "B L"]:
        return jnp.zeros((rows, self.config.encoder.num_hidden_layers))

    def look(
        self,
        number: int,
        weights: Params,
        states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        rule: Rule,
        forced: Float[Array, "B 1"],
        carry: Float[Array, "B L"],
    ) -> tuple[Float[Array, "B 1"], Float[Array, "B L"]]:
        logits = run_logits(weights[f"gate_{number}"], states, attention_mask, states.dtype)
        own = (logits[:, None] > rule.threshold).astype(jnp.float32)
        return jnp.where(forced == FREE, own, forced), carry.at[:, number].set(logits)

    def finish(
        self,
        weights: Params,
        head: Params,
        first: Float[Array, "B D"],
        dtype: DTypeLike,
        carry: Float[Array, "B L"],
    ) -> tuple[Float[Array, "B C"], Float[Array, "B L"]]:
        return classify(self.config.encoder, head, first, dtype)[1], carry

    def cost(
        self, layer_mask: Num[np.ndarray, "B L"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        encoder = self.config.encoder
        layer, layers = layer_flops(encoder, lengths), encoder.num_hidden_layers
        one = 2 * GATE_SIZE * (2 * GATE_SIZE + 1) + 4 * lengths * GATE_SIZE  # query, output, scores
        gate = 2 * lengths * GATE_SIZE * (encoder.hidden_size + 2 * GATE_SIZE) + one
        return (layer_mask.sum(axis=1) * layer + layers * gate) / (layers * layer)
