"""DACT-BERT: halting that is differentiable, and stops where no later layer could change the class.

Eyzaguirre, del Río, Araujo, Soto (2021), "DACT-BERT: Differentiable Adaptive Computation Time for
an Efficient BERT Inference". Behind layer n a classifier says y_n and a halting unit h_n in (0, 1).
With p_0 = 1 and a_0 = 0,

    a_n = y_n p_{n-1} + a_{n-1} (1 - p_{n-1}),    p_n = p_{n-1} h_n,

and the model's answer is a_N. Training runs all N layers and adds tau times the sum of p_n to the
loss. At inference d = N - n layers are left, and since p never rises none of them takes more than
p_n from the best class or gives more than p_n to the second: an input leaves where

    a_n(best) (1 - p_n)^d >= a_n(second) + p_n d.

Single-label classification only: the bound is on classes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.flops import layer_flops
from dpbert_jax.encoder.head import classify
from dpbert_jax.encoder.operations import Params, dense
from dpbert_jax.policies.early_exit import exits_cost
from dpbert_jax.policies.rule import Rule

LEAST = 1e-30  # probability whose logarithm is taken


class Halting(NamedTuple):
    """What comes along of each row."""

    inside: Bool[Array, " B"]  # has not left yet
    answer: Float[Array, "B C"]  # a_n, of the layer that it left at
    share: Float[Array, " B"]  # p_n: what the layers to come may still change


def advance(
    logits: Float[Array, "B C"],
    halting: Float[Array, " B"],
    answer: Float[Array, "B C"],
    share: Float[Array, " B"],
) -> tuple[Float[Array, "B C"], Float[Array, " B"]]:
    """One layer further: a_n and p_n of those before; `halting` is h_n before its sigmoid."""
    answer = jax.nn.softmax(logits) * share[:, None] + answer * (1 - share)[:, None]
    return answer, share * jax.nn.sigmoid(halting)


def is_settled(
    answer: Float[Array, "B C"], share: Float[Array, " B"], layers_left: int
) -> Bool[Array, " B"]:
    """Whether no later layer can change the class."""
    second, best = jnp.sort(answer, axis=1)[:, -2:].T
    return best * (1 - share) ** layers_left >= second + share * layers_left


@dataclass(frozen=True)
class Dact:
    """Leaves where its class is settled. It has no knob: what it spends was settled by tau."""

    config: DPBertConfig

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
        return {n: part for n, part in params.items() if n.startswith(("exit_", "halt_"))}

    def begin(self, rows: Any) -> Halting:
        nothing = jnp.zeros((rows, self.config.encoder.num_labels))
        return Halting(jnp.ones(rows, bool), nothing, jnp.ones(rows))

    def look(
        self,
        number: int,
        weights: Params,
        states: Float[Array, "B S D"],
        attention_mask: Int[Array, "B S"],
        rule: Rule,
        forced: Float[Array, "B N"],
        carry: Halting,
    ) -> tuple[Float[Array, "B N"], Halting]:
        encoder = self.config.encoder
        left = encoder.num_hidden_layers - 1 - number

        def ask(carry: Halting) -> Halting:
            first = states[:, 0]
            logits = classify(encoder, weights[f"exit_{number}"], first, states.dtype)[1]
            halting = dense(weights[f"halt_{number}"], first, states.dtype)[:, 0]
            found = advance(logits, halting.astype(jnp.float32), carry.answer, carry.share)
            answer = jnp.where(carry.inside[:, None], found[0], carry.answer)
            share = jnp.where(carry.inside, found[1], carry.share)
            return Halting(carry.inside & ~is_settled(answer, share, left), answer, share)

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
        carry: Halting,
    ) -> tuple[Float[Array, "B C"], Float[Array, "B P"]]:
        answer = jnp.log(jnp.maximum(carry.answer, LEAST))  # probabilities, as logits of themselves
        return answer, jnp.zeros((first.shape[0], 0))

    def cost(
        self, layer_mask: Num[np.ndarray, "B L"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        encoder, layers = self.config.encoder, layer_mask.sum(axis=1).astype(int)
        dense_model = encoder.num_hidden_layers * layer_flops(encoder, lengths)
        return (
            exits_cost(self.config, layers, lengths)
            + layers * 2 * encoder.hidden_size / dense_model
        )
