"""Plan rules: from the budget that a user asks for to the numbers that decide a plan."""

from typing import Literal, NamedTuple, get_args

import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.errors import UserError

PlanRule = Literal["threshold", "top_k"]
PLAN_RULES: tuple[str, ...] = get_args(PlanRule)


class Rule(NamedTuple):
    """A gate runs where its logit is >= `threshold` and among the row's `top_k` largest.

    Plain numbers, so that one compiled program serves every budget and rule.
    """

    budget: float
    threshold: float
    top_k: int


def check_budget(config: DPBertConfig, budget: float) -> None:
    """Refuses a budget that is no share, that the stem alone exceeds, or that nothing trained for.

    Raises:
        UserError: names the budget and the range that can be asked for.
    """
    if not 0 < budget <= 1:
        raise UserError(
            f"The budget is {budget}, but must lie in (0, 1]: a share of the dense FLOPs."
        )
    if budget == 1:
        return
    if config.planner is None:
        raise UserError(
            f"The budget is {budget}, but this model has no planner: it can only run dense "
            "(a budget of 1.0)."
        )
    fixed = config.stem_layers + config.min_gates
    lowest = fixed / config.encoder.num_hidden_layers
    if budget < lowest:
        raise UserError(
            f"The budget is {budget}, but the {fixed} layer(s) that every input runs cost "
            f"{lowest:.3f}: ask for more."
        )
    low, high = config.planner.min_budget, config.planner.max_budget
    if not low <= budget <= high:
        raise UserError(
            f"The budget is {budget}, but this model was trained for budgets from {low} to {high}"
            f"{'' if high == 1 else ', and for 1.0'}."
        )


def resolve_rule(config: DPBertConfig, budget: float, plan_rule: str = "threshold") -> Rule:
    """The rule for a budget.

    `threshold` uses the calibrated threshold, interpolated between grid points; depth varies with
    the input. `top_k` runs the floor(budget * L) layers that the budget pays for, stem included,
    for every input.

    Raises:
        UserError: the budget cannot be had, the rule is unknown, or it is `threshold` and the model
            was never calibrated.
    """
    check_budget(config, budget)
    if plan_rule not in PLAN_RULES:
        raise UserError(f"--plan_rule is '{plan_rule}', but must be one of {list(PLAN_RULES)}.")
    budget = float(budget)  # a numpy number has a type of its own, and would compile once more
    if budget == 1:  # all layers, whatever the logits say
        return Rule(1.0, -np.inf, config.num_gates)
    if plan_rule == "top_k":
        # The tolerance keeps 0.7 * 10 = 6.999... from losing a layer.
        layers = int(budget * config.encoder.num_hidden_layers + 1e-6)
        return Rule(budget, -np.inf, layers - config.stem_layers)
    calibration = config.calibration
    if calibration is None:
        raise UserError(
            "This model has no thresholds for --plan_rule threshold: find them with "
            "`eval.py --calibrate SPLIT`, or use --plan_rule top_k."
        )
    threshold = float(np.interp(budget, calibration.budgets, calibration.thresholds))
    return Rule(budget, threshold, config.num_gates)
