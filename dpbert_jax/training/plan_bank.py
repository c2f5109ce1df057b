"""The plans that a plan table tries, and the best chain among them: each plan a layer deeper."""

from itertools import product

import numpy as np
from jaxtyping import Float

from dpbert_jax.config import DPBertConfig

EXHAUSTIVE_GATES = 8  # so many planned layers at most have all their plans tried
DRAWN_CHAINS = 24
KEPT_PER_DEPTH = 6
BUDGETS = 201
UNUSED = 1e-3  # weight of a depth that no budget is next to: some rows may still have it


def all_plans(config: DPBertConfig) -> Float[np.ndarray, "K P"]:
    """Every plan with at least `min_gates` planned layers."""
    plans = np.array(list(product((0, 1), repeat=config.num_gates)), np.float32)
    return plans[plans.sum(axis=1) >= config.min_gates]


def drawn_plans(
    config: DPBertConfig, preference: Float[np.ndarray, " P"], seed: int
) -> Float[np.ndarray, "K P"]:
    """Plans of every depth for deeper models: chains whose layers come by `preference` (logits)."""
    random = np.random.default_rng(seed)
    noisy = preference + random.gumbel(size=(DRAWN_CHAINS, 1, config.num_gates))
    rank = (-noisy).argsort(axis=2).argsort(axis=2)
    depths = np.arange(config.min_gates, config.num_gates + 1)[:, None]
    plans = (rank < depths).reshape(-1, config.num_gates).astype(np.float32)
    return np.unique(plans, axis=0)


def best_of_each_depth(
    config: DPBertConfig, plans: Float[np.ndarray, "K P"], mean_losses: Float[np.ndarray, " K"]
) -> Float[np.ndarray, "B P"]:
    """The plans of least mean loss, some of every depth, and the best chain."""
    depth = plans.sum(axis=1)
    kept = [
        at[np.argsort(mean_losses[at], kind="stable")[:KEPT_PER_DEPTH]]
        for at in (np.flatnonzero(depth == d) for d in np.unique(depth))
    ]
    chain = best_chain(config, plans, mean_losses)
    return plans[np.unique(np.concatenate([*kept, chain]))]


def best_chain(
    config: DPBertConfig, plans: Float[np.ndarray, "K P"], mean_losses: Float[np.ndarray, " K"]
) -> np.ndarray:
    """The chain that serves best if all rows have every depth alike.

    A depth weighs what it gets over the trained budgets, when each is met by the two depths next
    to it.
    """
    return cheapest_chain(config, plans, _depth_weights(config)[depth_of(plans)] * mean_losses)


def cheapest_chain(
    config: DPBertConfig, plans: Float[np.ndarray, "K P"], lost: Float[np.ndarray, " K"]
) -> np.ndarray:
    """Numbers of the plans, from the least to all layers and each a layer deeper, that lose least.

    The best is exact: a shortest path, since the loss of a chain is the sum of its plans'.
    """
    depth, left = depth_of(plans), lost.copy()  # of the rest of the chain, from this plan on
    following = np.full(len(plans), -1)
    for at in np.argsort(-depth, kind="stable"):
        if depth[at] < config.num_gates:
            deeper = np.flatnonzero((depth == depth[at] + 1) & (plans >= plans[at]).all(axis=1))
            left[at] += left[deeper].min(initial=np.inf)
            following[at] = deeper[left[deeper].argmin()] if len(deeper) else -1
    start = np.flatnonzero(depth == config.min_gates)
    chain = [int(start[left[start].argmin()])]
    while following[chain[-1]] >= 0:
        chain.append(int(following[chain[-1]]))
    assert depth[chain[-1]] == config.num_gates, "a bank holds a chain"
    return np.array(chain)


def depth_of(plans: Float[np.ndarray, "K P"]) -> np.ndarray:
    """How many planned layers each plan runs; int [K]."""
    return plans.sum(axis=1).astype(int)


def _depth_weights(config: DPBertConfig) -> Float[np.ndarray, " depths"]:
    """How much of each number of planned layers the trained budgets ask for."""
    assert config.planner is not None
    budgets = np.linspace(config.planner.min_budget, config.planner.max_budget, BUDGETS)
    asked = budgets * config.encoder.num_hidden_layers - config.stem_layers
    asked = np.clip(asked, config.min_gates, config.num_gates)
    distance = np.abs(asked - np.arange(config.num_gates + 1)[:, None])
    return np.clip(1 - distance, 0, None).mean(axis=1) + UNUSED
