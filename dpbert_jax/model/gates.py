"""Gates: how gate logits become a plan. Straight-through samples in training, hard rules after."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


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


def hard_gates(
    gate_logits: Float[Array, "B P"],
    threshold: float | Float[Array, ""] | Float[Array, "B 1"],
    top_k: int | Array,
) -> Float[Array, "B P"]:
    """The plan at inference: gates among the row's `top_k` largest logits and >= `threshold`.

    One form holds every rule, and a program compiled for one serves all: the threshold rule is
    top_k = P, the top-k rule is threshold = -inf, the full depth is both. Ties fall to the lower
    layer.
    """
    order = jnp.argsort(-gate_logits, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1, stable=True)
    return ((gate_logits >= threshold) & (rank < top_k)).astype(jnp.float32)


def layer_mask_of(gates: Float[Array, "B P"], stem_layers: int) -> Float[Array, "B L"]:
    """The plan over all layers: ones for the stem, then the gates."""
    stem = jnp.ones((gates.shape[0], stem_layers), gates.dtype)
    return jnp.concatenate([stem, gates], axis=1)
