"""TR-BERT: tokens drop out before two of the layers, for all layers to come.

Ye, Lin, Huang, Sun (NAACL 2021, 2105.11618), "TR-BERT: Dynamic Token Reduction for Accelerating
BERT Inference". Before the second layer and the one halfway (0-based 1 and L / 2) a selector says
of each token that is left with what probability it stays, sigmoid(W2 gelu(W1 state)): those from
one half on do, or from where a dial's rule has its threshold, and the first token always. Which
layers run is another policy's matter, whose looks and answers are handed through: so tokens and
layers are saved together.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.flops import layer_flops
from dpbert_jax.encoder.operations import ACTIVATIONS, Params, dense
from dpbert_jax.policies.gates import FREE
from dpbert_jax.policies.protocol import Planned, Policy
from dpbert_jax.policies.rule import Rule

SELECTOR_SIZE = 32


def selector_layers(config: DPBertConfig) -> tuple[int, ...]:
    """The layers before which tokens drop out."""
    return tuple(sorted({1, config.encoder.num_hidden_layers // 2}))


def stay_logits(
    selector: Params, states: Float[Array, "B S D"], dtype: DTypeLike
) -> Float[Array, "B S"]:
    """Whether each token stays, before the sigmoid."""
    wide = ACTIVATIONS["gelu"](dense(selector["wide"], states, dtype))
    return dense(selector["narrow"], wide, dtype)[:, :, 0].astype(jnp.float32)


def with_first(stays: Array, attention_mask: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """The attention mask of the tokens that stay, and of the first."""
    first = jnp.arange(attention_mask.shape[1]) == 0
    return attention_mask * (stays | first[None]).astype(attention_mask.dtype)


class TokensCarry(NamedTuple):
    """What comes along."""

    gates: Float[Array, "B L"]  # that the inner policy has decided so far
    inner: Any


@dataclass(frozen=True)
class TrBert:
    """Drops tokens by its selectors; `inner` decides on layers."""

    config: DPBertConfig
    inner: Policy

    @property
    def looks(self) -> tuple[int, ...]:
        return tuple(sorted({*self.inner.looks, *selector_layers(self.config)}))

    @property
    def slots(self) -> None:
        return None

    @property
    def obeys(self) -> bool:
        return self.inner.obeys

    def weights(self, params: Params) -> Params:
        selectors = {name: part for name, part in params.items() if name.startswith("selector_")}
        return {"selectors": selectors, "inner": self.inner.weights(params)}

    def begin(self, rows: Any) -> TokensCarry:
        gates = jnp.ones((rows, self.config.encoder.num_hidden_layers))
        return TokensCarry(gates, self.inner.begin(rows))

    def look(
        self,
        number: int,
        weights: Params,
        states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        rule: Rule,
        forced: Float[Array, "B N"],
        carry: TokensCarry,
    ) -> tuple[Float[Array, "B N"], TokensCarry]:
        layers, first = self.config.encoder.num_hidden_layers, self.looks[number]
        if first in self.inner.looks:
            inner_number = self.inner.looks.index(first)
            end = [*self.inner.looks, layers][inner_number + 1]
            free = jnp.full((states.shape[0], end - first), FREE)
            about = (weights["inner"], states, attention_mask, rule, free, carry.inner)
            gates, inner = self.inner.look(inner_number, *about)
            carry = TokensCarry(carry.gates.at[:, first:end].set(gates), inner)
        gates = carry.gates[:, first : first + forced.shape[1]]
        return jnp.where(forced == FREE, gates, forced), carry

    def select(
        self,
        number: int,
        weights: Params,
        states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        rule: Rule,
    ) -> Int[Array, "B S"]:
        layer = self.looks[number]
        if layer not in selector_layers(self.config):
            return attention_mask
        selector = weights["selectors"][f"selector_{selector_layers(self.config).index(layer)}"]
        return with_first(stay_logits(selector, states, states.dtype) >= rule.stay, attention_mask)

    def finish(
        self,
        weights: Params,
        head: Params,
        first: Float[Array, "B D"],
        dtype: DTypeLike,
        carry: TokensCarry,
    ) -> tuple[Float[Array, "B C"], Float[Array, "B P"]]:
        return self.inner.finish(weights["inner"], head, first, dtype, carry.inner)

    def cost(
        self, layer_mask: Num[np.ndarray, "B L"], lengths: Int[np.ndarray, "B L"]
    ) -> Float[np.ndarray, " B"]:
        encoder, whole = self.config.encoder, lengths[:, 0]
        every = layer_flops(encoder, lengths.astype(float).ravel())
        flops = np.asarray(every).reshape(lengths.shape)
        full = np.asarray(layer_flops(encoder, whole.astype(float)))
        share = flops / full[:, None]
        asked = lengths[:, [layer - 1 for layer in selector_layers(self.config)]].sum(axis=1)
        selectors = asked * 2 * SELECTOR_SIZE * (encoder.hidden_size + 1)
        layers = layer_mask.shape[1]
        cost = (layer_mask * share).sum(axis=1) / layers + selectors / (layers * full)
        if not self.inner.looks:
            return cost
        # The inner policy's own: what it says that a plan costs beyond the plan.
        return cost + self.inner.cost(layer_mask, whole) - layer_mask.sum(axis=1) / layers


def selector_products(config: DPBertConfig) -> dict[str, dict[str, tuple[int, int]]]:
    """Inputs and outputs of each product of each selector, by names in the parameters."""
    products = {"wide": (config.encoder.hidden_size, SELECTOR_SIZE), "narrow": (SELECTOR_SIZE, 1)}
    numbers = range(len(selector_layers(config))) if config.token_selectors else ()
    return {f"selector_{number}": products for number in numbers}


def with_selectors(config: DPBertConfig) -> DPBertConfig:
    """The same model, of which tokens drop out.

    Raises:
        UserError: none can.
    """
    return dataclasses.replace(config, token_selectors=True)


def trbert(config: DPBertConfig) -> TrBert:
    """On a planner's plans: on all layers where the model has none.

    Raises:
        UserError: no tokens can drop out of this model.
    """
    return TrBert(with_selectors(config), Planned(config))


def own_policy(config: DPBertConfig) -> Policy:
    """A model's own: its planner, and its selectors where it has any."""
    return trbert(config) if config.token_selectors else Planned(config)
