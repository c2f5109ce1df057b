"""What a policy is to executors, and which one a model's own is."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.adapters import Slots
from dpbert_jax.encoder.head import classify
from dpbert_jax.encoder.operations import Params
from dpbert_jax.policies.adapted import adapter_slots
from dpbert_jax.policies.cost import plan_cost
from dpbert_jax.policies.gates import choose_gates
from dpbert_jax.policies.planner import gate_logits
from dpbert_jax.policies.rule import Rule

Carry = Any  # arrays that a policy takes along, from look to look
Size = Any  # an integer, or a symbol where a program is exported for any batch


@runtime_checkable
class Policy(Protocol):
    """Who decides which layers run: it looks at hidden states before some of them.

    What it has seen and said before comes along in `carry`. It runs inside compiled programs: each
    method is a function of arrays, and rows are independent.
    """

    @property
    def looks(self) -> tuple[int, ...]:
        """The layers before which it looks, ascending; L is after the last.

        Layers before the first look run for every input, all of them where there is none.
        """
        ...

    @property
    def slots(self) -> Callable[[Any], Any] | None:
        """Which adapters (`encoder.adapters`) the plans of these gates use; None: it has none.

        Only where it looks once: a plan's depth must be known before its layers run.
        """
        ...

    @property
    def obeys(self) -> bool:
        """Whether a plan can be given to it in place of its own."""
        ...

    def weights(self, params: Params) -> Params:
        """Its own part of a model's parameters."""
        ...

    def begin(self, rows: Size) -> Carry: ...

    def look(
        self,
        number: int,
        weights: Params,
        states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        rule: Rule,
        forced: Float[Array, "B N"],
        carry: Carry,
    ) -> tuple[Float[Array, "B N"], Carry]:
        """Gates of the N layers up to the next look, 1 = run.

        Of a policy that `obeys`, `forced` ones are as they are told.

        `number` counts looks from 0.
        """
        ...

    def finish(
        self,
        weights: Params,
        head: Params,
        first: Float[Array, "B D"],
        dtype: DTypeLike,
        carry: Carry,
    ) -> tuple[Float[Array, "B C"], Float[Array, "B P"]]:
        """Logits, of the model's head on the first token's state or its own, and gate logits."""
        ...

    def cost(
        self, layer_mask: Num[np.ndarray, "B L"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        """Each row's share of the dense encoder's FLOPs, what the policy itself takes included."""
        ...


@runtime_checkable
class TokenPolicy(Policy, Protocol):
    """A policy that drops tokens as well: what it drops is gone for all layers to come.

    Its `cost` is given the tokens [B, L] that each layer has, in place of the lengths.
    """

    def select(
        self,
        number: int,
        weights: Params,
        states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        rule: Rule,
    ) -> Int[Array, "B S"]:
        """The attention mask from this look on; the first token always stays."""
        ...


class Planned:
    """The planner: looks once, after the stem, and decides on all layers behind it.

    Of a model without a planner it is the static policy: no look, every layer runs.
    """

    obeys = True

    def __init__(self, config: DPBertConfig) -> None:
        self.config = config
        self.looks = (config.stem_layers,) if config.planner else ()
        self.slots = partial(adapter_slots, config) if config.adapters else None

    def weights(self, params: Params) -> Params:
        adapters = {"head": params["adapters"]["head"]} if self.slots else {}
        return {"planner": params.get("planner", {}), **adapters}

    def begin(self, rows: Size) -> Carry:
        # Gate logits, and, where there are adapters, slots.
        logits = jnp.zeros((rows, self.config.num_gates))
        return (logits, jnp.zeros(rows, jnp.int32)) if self.slots else (logits,)

    def look(
        self,
        number: int,
        weights: Params,
        states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        rule: Rule,
        forced: Float[Array, "B N"],
        carry: Carry,
    ) -> tuple[Float[Array, "B N"], Carry]:
        # Also where a forced gate overrules it: so a forced plan costs what one of its own does.
        logits = gate_logits(self.config, weights["planner"], states, attention_mask)
        gates = choose_gates(logits, rule, forced, self.config.min_gates)
        return gates, (logits, self.slots(gates)) if self.slots else (logits,)

    def finish(
        self,
        weights: Params,
        head: Params,
        first: Float[Array, "B D"],
        dtype: DTypeLike,
        carry: Carry,
    ) -> tuple[Float[Array, "B C"], Float[Array, "B P"]]:
        logits, *slots = carry
        return self.answer(weights, head, first, dtype, *slots), logits

    def answer(
        self,
        weights: Params,
        head: Params,
        first: Float[Array, "B D"],
        dtype: DTypeLike,
        slots: Slots | None = None,
    ) -> Float[Array, "B C"]:
        """Logits of plans of these slots."""
        own: Any = {"adapters": weights["head"], "slots": slots} if self.slots else {}
        return classify(self.config.encoder, head, first, dtype, **own)[1]

    def cost(
        self, layer_mask: Num[np.ndarray, "B L"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        gates = layer_mask[:, self.config.stem_layers :]
        return np.asarray(plan_cost(self.config, gates, lengths))
