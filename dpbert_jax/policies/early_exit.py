"""Early exit: a classifier behind every layer, and an input leaves where it is sure enough.

DeeBERT (Xin et al., ACL 2020, 2004.12993): an input leaves at the first exit whose entropy is below
a threshold. PABEE (Zhou et al., NeurIPS 2020, 2006.04152): it leaves once `patience` exits in a row
agree with the one before (regression: differ from it by less than a tolerance).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.flops import Length, layer_flops
from dpbert_jax.encoder.head import classify
from dpbert_jax.encoder.operations import Params
from dpbert_jax.policies.rule import Rule
from dpbert_jax.problem import MULTI_LABEL, ProblemType


class Exits(NamedTuple):
    """What early exit takes along: rows of a batch, and what the exits have said of them."""

    inside: Bool[Array, " B"]  # has not left yet
    answer: Float[Array, "B C"]  # logits of the exit it left at
    last: Float[Array, "B C"]  # logits of the last exit it came by
    agreed: Int[Array, " B"]  # exits in a row that agreed with the one before


Sure = Callable[[int, Float[Array, "B C"], Exits, float | Array], tuple[Array, Array]]


@dataclass(frozen=True)
class EarlyExit:
    """Leaves at the first exit that `sure` is of; the rule's `threshold` is its knob.

    `sure(number, logits, exits, threshold)` gives who may leave [B] and the new `agreed` [B].
    """

    config: DPBertConfig
    sure: Sure

    @property
    def looks(self) -> tuple[int, ...]:
        return tuple(range(1, self.config.encoder.num_hidden_layers + 1))

    @property
    def slots(self) -> None:
        return None  # it learns a row's depth on the way

    @property
    def obeys(self) -> bool:
        return False

    def weights(self, params: Params) -> Params:
        return {name: part for name, part in params.items() if name.startswith("exit_")}

    def begin(self, rows: Any) -> Exits:
        nothing = jnp.zeros((rows, self.config.encoder.num_labels))
        return Exits(jnp.ones(rows, bool), nothing, nothing, jnp.zeros(rows, jnp.int32))

    def look(
        self,
        number: int,
        weights: Params,
        states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        rule: Rule,
        forced: Float[Array, "B N"],
        carry: Exits,
    ) -> tuple[Float[Array, "B N"], Exits]:
        encoder = self.config.encoder

        def ask(carry: Exits) -> Exits:
            head, first = weights[f"exit_{number}"], states[:, 0]
            logits = classify(encoder, head, first, states.dtype)[1]
            threshold = jnp.reshape(jnp.asarray(rule.threshold), -1)  # of all rows, or of each
            leaves, agreed = self.sure(number, logits, carry, threshold)
            if number == encoder.num_hidden_layers - 1:
                leaves = jnp.ones_like(leaves)
            leaves = leaves & carry.inside
            answer = jnp.where(leaves[:, None], logits, carry.answer)
            return Exits(carry.inside & ~leaves, answer, logits, agreed)

        # Nobody inside: no exit is asked any more.
        carry = jax.lax.cond(carry.inside.any(), ask, lambda carry: carry, carry)
        gates = carry.inside[:, None].astype(jnp.float32)
        return gates[:, : forced.shape[1]], carry

    def finish(
        self,
        weights: Params,
        head: Params,
        first: Float[Array, "B D"],
        dtype: DTypeLike,
        carry: Exits,
    ) -> tuple[Float[Array, "B C"], Float[Array, "B P"]]:
        return carry.answer, jnp.zeros((first.shape[0], 0))

    def cost(
        self, layer_mask: Num[np.ndarray, "B L"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        return exits_cost(self.config, layer_mask.sum(axis=1).astype(int), lengths)


def exits_cost(config: DPBertConfig, layers: Int[np.ndarray, " N"], sequence_length: Length) -> Any:
    """The share of the dense encoder's FLOPs of rows that left after so many layers; [N]."""
    encoder = config.encoder
    head = 2 * encoder.hidden_size * (encoder.hidden_size + encoder.num_labels)
    layer = layer_flops(encoder, sequence_length)
    # The dense model has the head of the last layer, too.
    return (layers * layer + (layers - 1) * head) / (encoder.num_hidden_layers * layer)


def deebert(config: DPBertConfig) -> EarlyExit:
    """Leaves where the entropy is below the threshold."""

    def sure(number: int, logits: Array, exits: Exits, threshold: Any) -> tuple[Array, Array]:
        return entropy(logits, config.encoder.problem_type) < threshold, exits.agreed

    return EarlyExit(config, sure)


def pabee(config: DPBertConfig) -> EarlyExit:
    """Leaves where `threshold` exits in a row agreed with the one before.

    Of a regression the patience is one exit, and `threshold` the most that two may differ.
    """
    encoder = config.encoder

    def sure(number: int, logits: Array, exits: Exits, threshold: Any) -> tuple[Array, Array]:
        if number == 0:
            return jnp.zeros(logits.shape[0], bool), exits.agreed
        if encoder.is_regression:
            return jnp.abs(logits - exits.last)[:, 0] < threshold, exits.agreed
        if encoder.is_multi_label:
            agrees = ((logits > 0) == (exits.last > 0)).all(axis=1)
        else:
            agrees = logits.argmax(axis=1) == exits.last.argmax(axis=1)
        agreed = jnp.where(agrees, exits.agreed + 1, 0)
        return agreed >= threshold, agreed

    return EarlyExit(config, sure)


def entropy(logits: Float[Array, "*axes C"], problem_type: ProblemType) -> Float[Array, "*axes"]:
    """Of the answer, in nats.

    Of several labels it is the mean over them, each a choice of two: ours, the paper has classes
    only.
    """
    if problem_type == MULTI_LABEL:
        yes = jax.nn.sigmoid(logits)
        each = jax.scipy.special.entr(yes) + jax.scipy.special.entr(1 - yes)
        return each.mean(axis=-1)
    log_probs = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)
