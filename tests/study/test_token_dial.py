"""The dial of a model that drops tokens: its path, its knots, and what it costs on other inputs."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import from_hf_dict, to_hf_dict
from dpbert_jax.data import TokenizedSplit
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.token_dial import Knot, asking, dial_of, measured_dial
from dpbert_jax.inference import resolve_rule
from dpbert_jax.model import Model
from dpbert_jax.policies.rule import budget_range, check_budget
from dpbert_jax.study.token_dial import cheapest_path
from dpbert_jax.study.trbert import initial_selectors

DIAL = Calibration((0.2, 0.6, 1.0), (2.0, 0.0, -9.0), "rows", (3.0, -1.0, -50.0))
CONFIG = DPBertConfig(TINY, PlannerConfig(), DIAL, token_selectors=True)


def paths(depths, shares):
    """All of them, from the first corner to the last."""
    if (depths, shares) == (1, 1):
        return [[(0, 0)]]
    last, found = (depths - 1, shares - 1), []
    for step in ((1, 0), (0, 1), (1, 1)):
        if depths > step[0] and shares > step[1]:
            found += [[*path, last] for path in paths(depths - step[0], shares - step[1])]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_one_of_least_area(seed):
    random = np.random.default_rng(seed)
    costs = np.add.outer([3.0, 2, 1], [2.0, 1.4, 1, 0.2]) * random.uniform(0.9, 1.1, (3, 4))
    losses = random.uniform(size=(3, 4))

    def area(path):
        steps = pairwise(path)
        return sum(max(costs[a] - costs[b], 0) * (losses[a] + losses[b]) / 2 for a, b in steps)

    least = min(paths(3, 4), key=area)
    assert area(cheapest_path(costs, losses)) == pytest.approx(area(least))


def test_a_knot_that_saves_nothing_is_left_out():
    knots = [
        Knot(-9.0, -50.0, 1.02),
        Knot(0.0, -50.0, 0.7),
        Knot(0.0, -20.0, 0.71),
        Knot(2.0, 3.0, 0.3),
    ]
    dial = dial_of(knots, "rows")
    assert dial == Calibration((0.3, 0.7, 1.0), (2.0, 0.0, -9.0), "rows", (3.0, -50.0, -50.0))
    with pytest.raises(UserError, match="there is no dial"):
        dial_of([Knot(-9.0, -50.0, 1.02), Knot(0.0, -50.0, 1.02)], "rows")


def test_a_budget_is_both_thresholds_between_two_knots():
    rule = resolve_rule(CONFIG, 0.4)
    assert (rule.threshold, rule.stay) == (pytest.approx(1.0), pytest.approx(1.0))
    assert resolve_rule(CONFIG, 1.0).stay == -np.inf
    assert resolve_rule(dataclasses.replace(CONFIG, calibration=None), 1.0).stay == 0
    assert budget_range(CONFIG) == (0.2, 1.0)
    with pytest.raises(UserError, match=r"the fewest tokens .* cost 0.200: ask for more"):
        check_budget(CONFIG, 0.19)
    with pytest.raises(UserError, match="split between layers and tokens"):
        resolve_rule(CONFIG, 0.4, "top_k")


def test_a_dial_is_kept_in_the_config():
    values = to_hf_dict(CONFIG)
    assert from_hf_dict(values, "config.json") == CONFIG
    values["dpbert"]["calibration"]["stays"] = [3.0, 4.0, -50.0]
    with pytest.raises(UserError, match="stays must be one for each budget, descending"):
        from_hf_dict(values, "config.json")


def test_budgets_are_what_the_inputs_cost(random_params, tiny_folder):
    selectors = initial_selectors(CONFIG, seed=0)
    random = np.random.default_rng(0)
    for selector in selectors.values():
        selector["narrow"]["kernel"] = 100 * selector["narrow"]["kernel"]
    model = Model(CONFIG, {**random_params(CONFIG), **selectors}, None, 16)
    lengths = random.integers(4, 17, 40)
    ids = random.integers(1, TINY.vocab_size, lengths.sum()).astype(np.int32)
    split = TokenizedSplit(ids, np.zeros(len(ids), np.int8), np.cumsum([0, *lengths]), None)
    found = measured_dial(model, split, "others")
    assert found.inputs == "others" and found.stays and found.budgets[-1] == 1
    asked = asking(model, split)
    pairs = list(zip(found.thresholds, found.stays, strict=True))
    for budget, pair in zip(found.budgets[:-1], pairs, strict=False):
        assert asked(*pair)[1] == pytest.approx(budget)
    made, _ = asked(*pairs[0])
    assert made.cost.mean() < 0.75
