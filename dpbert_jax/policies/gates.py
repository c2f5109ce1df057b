"""Gates: how gate logits become a plan. Straight-through samples in training, hard rules after."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dpbert_jax.policies.rule import Rule


def relaxed_gates(
    gate_logits: Float[Array, "B P"], noise: Float[Array, "B P"], temperature: float | Array
) -> Float[Array, "B P"]:
    """The Gumbel-sigmoid (binary concrete) relaxation, in (0, 1).

    `noise` is logistic: the difference of the two Gumbel variables of a binary choice. Source:
    Maddison et al., 1611.00712; Jang et al., 1611.01144.
    """
    return jax.nn.sigmoid((gate_logits + noise) / temperature)


def straight_through_gates(
    gate_logits: Float[Array, "B P"], noise: Float[Array, "B P"], temperature: float | Array
) -> Float[Array, "B P"]:
    """Forward exactly 0 or 1, backward the gradient of `relaxed_gates`.

    P(gate = 1) = sigmoid(gate_logit) at every temperature. Straight-through: Bengio et al.,
    1308.3432.
    """
    relaxed = relaxed_gates(gate_logits, noise, temperature)
    hard = (relaxed > 0.5).astype(relaxed.dtype)
    # hard - stop(relaxed) + relaxed would round; zero = relaxed - stop(relaxed) is exactly 0.
    return hard + (relaxed - jax.lax.stop_gradient(relaxed))


def logistic_noise(keys: Key[Array, " B"], num_gates: int) -> Float[Array, "B P"]:
    """Standard logistic noise, one random key a row."""
    return jax.vmap(lambda key: jax.random.logistic(key, (num_gates,)))(keys)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def meet_share(
    gate_logits: Float[Array, "B P"],
    counted: Float[Array, " B"],
    share: Float[Array, ""],
    axis_name: str,
) -> Float[Array, "B P"]:
    """The logits less the one threshold at which the counted rows' gates meet `share` on average.

    mean sigmoid(logit - threshold) = share, over the rows of all devices, each as often as
    `counted` says. The threshold is solved
    for, so no penalty has to push the cost to the budget; its own derivative is part of the
    gradient, so a layer's logit rises only at the expense of others.
    """
    return gate_logits - _solve_threshold(gate_logits, counted, share, axis_name)


def _solve_threshold(
    gate_logits: Array, counted: Array, share: Array, axis_name: str
) -> Float[Array, ""]:
    everywhere = partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
    logits, weights = everywhere(gate_logits), everywhere(counted)[:, None]
    total = jnp.maximum(weights.sum() * logits.shape[1], 1.0)

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        too_many = (weights * jax.nn.sigmoid(logits - middle)).sum() / total > share
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    reach = 10.0  # sigmoid(-10) is a share of 5e-5
    bounds = (logits.min() - reach, logits.max() + reach)
    low, high = jax.lax.fori_loop(0, 40, halve, bounds)
    return (low + high) / 2


def _meet_share_forward(
    gate_logits: Array, counted: Array, share: Array, axis_name: str
) -> tuple[Array, tuple[Array, Array]]:
    shifted: Any = meet_share(gate_logits, counted, share, axis_name)
    return shifted, (shifted, counted)


def _meet_share_backward(
    axis_name: str, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array, Array]:
    shifted, counted = saved
    probability = jax.nn.sigmoid(shifted)
    # d threshold / d logit, by the implicit function theorem.
    slope = counted[:, None] * probability * (1 - probability)
    pushed, resisting = jax.lax.psum((gradient.sum(), slope.sum()), axis_name)
    gradient = gradient - pushed * slope / jnp.maximum(resisting, 1e-12)
    return gradient, jnp.zeros_like(counted), jnp.zeros(())


meet_share.defvjp(_meet_share_forward, _meet_share_backward)


def hard_gates(
    gate_logits: Float[Array, "B P"],
    threshold: float | Float[Array, ""] | Float[Array, "B 1"],
    top_k: int | Array,
    min_gates: int = 0,
) -> Float[Array, "B P"]:
    """The plan at inference: gates among the row's `top_k` largest logits and >= `threshold`.

    One form holds every rule, and a program compiled for one serves all: the threshold rule is
    top_k = P, the top-k rule is threshold = -inf, the full depth is both. The row's `min_gates`
    largest logits pass any threshold. Ties fall to the lower layer.

    >>> hard_gates(jnp.array([[2.0, -1.0, 0.5]]), threshold=0.0, top_k=3).tolist()
    [[1.0, 0.0, 1.0]]
    >>> hard_gates(jnp.array([[2.0, -1.0, 0.5]]), threshold=-jnp.inf, top_k=1).tolist()
    [[1.0, 0.0, 0.0]]
    """
    order = jnp.argsort(-gate_logits, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1, stable=True)
    passes = (gate_logits >= threshold) | (rank < min_gates)
    return (passes & (rank < top_k)).astype(jnp.float32)


FREE = -1.0  # among forced gates: left to the policy


def choose_gates(
    gate_logits: Float[Array, "B P"],
    rule: Rule,
    forced: Float[Array, "B P"],
    min_gates: int,
) -> Float[Array, "B P"]:
    """The rule's gates, but for those that are forced to 0 or 1."""
    gates = hard_gates(gate_logits, rule.threshold, rule.top_k, min_gates)
    return jnp.where(forced == FREE, gates, forced)
