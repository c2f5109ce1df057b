"""Finds how a model that drops tokens splits a budget between layers and tokens.

Layer thresholds and stay thresholds make a grid; of all paths through it from all layers and tokens
to the fewest, in which neither ever rises, the one is taken along which the dense model's answers
to held-out rows are lost least. It is then walked in small steps, each a knot of the dial.
"""

import numpy as np
from jaxtyping import Float

from dpbert_jax.config import Calibration
from dpbert_jax.evaluation.token_dial import asking, dial_of, knot
from dpbert_jax.model import Model
from dpbert_jax.run_folder import HELD_OUT
from dpbert_jax.study.fit import Run
from dpbert_jax.training.held_out_table import plan_losses

SHARES = (0.0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.9)  # of the tokens, that the first selector drops
DEPTHS = 5  # layer thresholds that are tried, from all layers to the least budget's
STEPS = 3  # from one pair of thresholds on the path to the next


def find_dial(run: Run, model: Model, stay_logits: Float[np.ndarray, " T"]) -> Calibration:
    """Budgets, from the least to 1, and the pair of thresholds of each, on the rows held out.

    Args:
        model: with the thresholds of its layers' budgets, at which all tokens stay.
        stay_logits: of the held-out rows' tokens, as the first selector gives them.
    """
    held_out, problem = run.rows.held_out, model.config.encoder.problem_type
    wanted, asked = run.teacher_logits(held_out), asking(model, held_out)
    grid = model.config.calibration
    assert grid is not None
    layers = np.interp(np.linspace(1.0, grid.budgets[0], DEPTHS), grid.budgets, grid.thresholds)
    tokens = np.quantile(stay_logits, SHARES)
    tokens[0] -= 1  # all of them
    costs, losses = np.zeros((2, len(layers), len(tokens)))
    for i, threshold in enumerate(layers):
        for j, stay in enumerate(tokens):
            made, costs[i, j] = asked(threshold, stay)
            losses[i, j] = plan_losses(made.logits[:, None], wanted, problem).mean()
    path = np.array(cheapest_path(costs, losses), float)
    places = np.linspace(0, len(path) - 1, STEPS * (len(path) - 1) + 1)
    rows, columns = (np.interp(places, range(len(path)), each) for each in path.T)
    thresholds = np.interp(rows, range(len(layers)), layers)
    stays = np.interp(columns, range(len(tokens)), tokens)
    pairs = zip(thresholds, stays, strict=True)
    return dial_of([knot(asked, *pair) for pair in pairs], HELD_OUT)


def cheapest_path(
    costs: Float[np.ndarray, "D T"], losses: Float[np.ndarray, "D T"]
) -> list[tuple[int, int]]:
    """From the first corner to the last, the least area of loss over cost; one step each way.

    >>> cheapest_path(np.array([[3.0, 2], [2, 1]]), np.array([[0.0, 9], [1, 1]]))
    [(0, 0), (1, 0), (1, 1)]
    """
    depths, shares = costs.shape
    area = np.full(costs.shape, np.inf)
    area[0, 0] = 0
    before: dict[tuple[int, int], tuple[int, int]] = {}
    for at in np.ndindex(depths, shares):
        for step in ((1, 0), (0, 1), (1, 1)):
            came = (at[0] - step[0], at[1] - step[1])
            if min(came) < 0:
                continue
            saved = max(costs[came] - costs[at], 0)
            found = area[came] + saved * (losses[came] + losses[at]) / 2
            if found < area[at]:
                area[at], before[at] = found, came
    path = [(depths - 1, shares - 1)]
    while path[-1] != (0, 0):
        path.append(before[path[-1]])
    return path[::-1]
