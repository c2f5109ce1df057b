"""Plans that do not look at the input, or at its length alone: controls on a run's own weights.

HashEE (Sun et al., ACL Findings 2022) found that routing without a look at the input can beat
learned predictors of difficulty. So a learned plan means something only beside these.
"""

from typing import NamedTuple

import numpy as np

from dpbert_jax.config import ROWS, DPBertConfig
from dpbert_jax.policies.cost import cost_unit, row_weights


def random_plans(config: DPBertConfig, rows: int, mean_layers: float, seed: int) -> np.ndarray:
    """Layers drawn at random: every row runs one of the two depths around `mean_layers`; [N, L]."""
    random = np.random.default_rng(seed)
    depth = exact_mix(mean_layers - config.stem_layers, rows, random)
    rank = random.random((rows, config.num_gates)).argsort(axis=1).argsort(axis=1)
    return _with_stem(config, rank < depth[:, None])


NEIGHBOURS = 8  # rows of about one length that exchange their plans


def shuffled_plans(
    config: DPBertConfig, layer_mask: np.ndarray, lengths: np.ndarray, seed: int
) -> np.ndarray:
    """The very same plans, each given to another row; [N, L].

    Where a budget counts all rows' FLOPs, to one of about its length, since they would cost more
    or less elsewhere: what is left out then is what plans know beyond the length.
    """
    random = np.random.default_rng(seed)
    if cost_unit(config) == ROWS:
        return random.permutation(layer_mask)
    order = np.lexsort((random.random(len(lengths)), lengths))
    taken = order.copy()
    for start in range(0, len(order), NEIGHBOURS):
        block = slice(start, start + NEIGHBOURS)
        taken[block] = random.permutation(order[block])
    shuffled = np.empty_like(layer_mask)
    shuffled[order] = layer_mask[taken]
    return shuffled


LENGTH_GROUPS, GROUP_ROWS = 8, 40  # at most so many groups, of at least so many held-out rows


class Mix(NamedTuple):
    """Two plans and how often the second is taken."""

    cheap: np.ndarray  # gates [P]
    dear: np.ndarray
    share: float


def best_mix(plans: np.ndarray, mean_losses: np.ndarray, mean_gates: float) -> Mix:
    """The mix of two plans with the least mean loss among those that run `mean_gates` on average.

    No mix of more plans is better: the least loss at a mean cost lies on the lower convex hull.

    Args:
        plans: gates [K, P].
        mean_losses: over held-out rows, [K].
    """
    gates = plans.sum(axis=1)
    best, least = None, np.inf
    for cheap in np.flatnonzero(gates <= mean_gates):
        for dear in np.flatnonzero(gates >= mean_gates):
            span = gates[dear] - gates[cheap]
            share = (mean_gates - gates[cheap]) / span if span else 0.0
            loss = (1 - share) * mean_losses[cheap] + share * mean_losses[dear]
            if loss < least:
                best, least = Mix(plans[cheap], plans[dear], float(share)), loss
    if best is None:
        raise ValueError(f"no two plans run {mean_gates} gates on average")
    return best


def mixed_plans(config: DPBertConfig, mix: Mix, rows: int, seed: int) -> np.ndarray:
    """The mix's plans dealt out to rows at random; [N, L]."""
    dear = exact_mix(mix.share, rows, np.random.default_rng(seed))
    return _with_stem(config, np.where(dear[:, None] > 0, mix.dear, mix.cheap))


class PlansByLength(NamedTuple):
    """What each plan loses on inputs of each length, in groups of about as many rows.

    A group's means over some hundred held-out rows tell plans apart by chance as well, and the best
    of many plans is the luckiest: they are shrunk towards those over all rows by as much as their
    spread is chance (empirical Bayes; Efron and Morris, JASA 1973, for means of one variance).
    """

    plans: np.ndarray  # gates [K, P]
    edges: np.ndarray  # the least length of each group but the first, ascending
    losses: np.ndarray  # of each group, less what all plans have in common there, [groups, K]

    @classmethod
    def of(cls, plans: np.ndarray, losses: np.ndarray, lengths: np.ndarray) -> "PlansByLength":
        """From losses [N, K] of held-out rows and their lengths [N]."""
        groups = int(np.clip(len(lengths) // GROUP_ROWS, 1, LENGTH_GROUPS))
        edges = np.unique(np.quantile(lengths, np.arange(1, groups) / groups, method="nearest"))
        edges = edges[edges > lengths.min()]
        group = np.searchsorted(edges, lengths, side="right")
        # How hard a row is to every plan chooses none.
        centred = losses - losses.mean(axis=1, keepdims=True)
        parts = [centred[group == number] for number in range(len(edges) + 1)]
        apart = np.array([part.mean(axis=0) for part in parts]) - centred.mean(axis=0)
        chance = np.array([part.var(axis=0) / len(part) for part in parts])
        spread = max(float((apart**2).mean() - chance.mean()), 0.0)
        kept = spread / (spread + chance) if spread else 0.0
        return cls(plans, edges, centred.mean(axis=0) + kept * apart)

    def plans_of(
        self, config: DPBertConfig, lengths: np.ndarray, mean_gates: float, seed: int
    ) -> np.ndarray:
        """Plans of these rows that run `mean_gates` on average, each best for its length; [N, L].

        The mean is as budgets count rows. At one price of it every length has its best plan. The
        two prices between which the mean is met are dealt out to rows at random.
        """
        group = np.searchsorted(self.edges, lengths, side="right")
        gates, counted = self.plans.sum(axis=1), np.asarray(row_weights(config, lengths))
        counted = counted / counted.mean()

        def at(price: float) -> np.ndarray:
            return (self.losses[group] + price * counted[:, None] * gates).argmin(axis=1)

        def paid(plans: np.ndarray) -> np.ndarray:
            return counted * gates[plans]

        # Beyond it every row has the least or the most gates.
        reach = (float(np.ptp(self.losses)) + 1.0) / float(counted.min())
        low, high = -reach, reach
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if paid(at(middle)).mean() > mean_gates else (low, middle)
        dear, cheap = at(low), at(high)
        order = np.random.default_rng(seed).permutation(len(lengths))
        left = mean_gates * len(lengths) - paid(cheap).sum()
        more = np.cumsum((paid(dear) - paid(cheap))[order])
        chosen = cheap.copy()
        within = order[: np.searchsorted(more, left + 1e-9, side="right")]
        chosen[within] = dear[within]
        return _with_stem(config, self.plans[chosen])


def best_static_plan(plans: np.ndarray, mean_losses: np.ndarray, gates: int) -> np.ndarray:
    """The plan of so many planned layers with the least mean loss; [P]."""
    among = np.flatnonzero(plans.sum(axis=1) == gates)
    return plans[among[mean_losses[among].argmin()]]


def exact_mix(mean: float, rows: int, random: np.random.Generator) -> np.ndarray:
    """Whole numbers in random order: the two around `mean`, as many of each as meet it; [N]."""
    low = int(np.floor(mean + 1e-9))
    above = round((mean - low) * rows)
    return random.permutation(np.repeat([low, low + 1], [rows - above, above]))


def _with_stem(config: DPBertConfig, gates: np.ndarray) -> np.ndarray:
    stem = np.ones((len(gates), config.stem_layers))
    return np.concatenate([stem, gates], axis=1).astype(np.int8)
