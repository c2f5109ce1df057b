"""Plan rules: from the budget that a user asks for to the numbers that decide a plan.

What follows from a model is the `RuleTable`; the forms of the rule in JAX (`resolve_rule`,
`traced_rule`), ONNX (`export.onnx_rule`) and PyTorch (`export.remote`) are held to it by tests.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dpbert_jax.config import DPBertConfig
from dpbert_jax.errors import UserError

PlanRule = Literal["threshold", "top_k"]
PLAN_RULES: tuple[str, ...] = get_args(PlanRule)


# Of a number of layers, so that 0.7 * 10 = 6.999... is 7: more than float32 loses.
DEPTH_TOLERANCE = 1e-5


class RuleTable(NamedTuple):
    """What turns a budget into a depth or a threshold, of one model."""

    low: float  # budgets are held to low .. high; 1 and more runs all layers
    high: float
    layers: int  # L
    stem_layers: int
    min_gates: int  # planned layers that pass any threshold
    budgets: tuple[float, ...]  # ascending; the thresholds between are linear
    thresholds: tuple[float, ...]


class Rule(NamedTuple):
    """A gate runs where its logit is >= `threshold` and among the row's `top_k` largest.

    A token stays where its selector's logit is >= `stay`. Plain numbers, so that one compiled
    program serves every budget and rule.
    """

    budget: float
    threshold: Any  # a float, or float32 [N, 1] with one for each row
    top_k: int
    stay: Any = 0.0  # as `threshold`; 0: tokens that stay with a probability of one half

    def of_rows(self, rows: np.ndarray) -> "Rule":
        """The rule of some rows, in a batch of their own."""
        each = {"threshold": self.threshold, "stay": self.stay}
        return self._replace(**{name: v[rows] for name, v in each.items() if np.ndim(v)})


def budget_range(config: DPBertConfig) -> tuple[float, float] | None:
    """The least and the largest budget beside 1; None: there is no other."""
    if config.dial:
        return config.dial.budgets[0], 1.0
    return (config.planner.min_budget, config.planner.max_budget) if config.planner else None


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
            f"The budget is {budget}, but this model has no planner: it can only run "
            f"{'as it was trained' if config.token_selectors else 'dense'} (a budget of 1.0)."
        )
    if config.dial:
        least = config.dial.budgets[0]
        if budget < least:
            raise UserError(
                f"The budget is {budget}, but the fewest layers on the fewest tokens that this "
                f"model was tried with cost {least:.3f}: ask for more."
            )
        return
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

    >>> from dpbert_jax.config import BERT_BASE, PlannerConfig
    >>> resolve_rule(DPBertConfig(BERT_BASE, PlannerConfig()), 0.5, "top_k").top_k  # and the stem
    5

    Raises:
        UserError: the budget cannot be had, the rule is unknown, or it is `threshold` and the model
            was never calibrated.
    """
    check_budget(config, budget)
    if plan_rule not in PLAN_RULES:
        raise UserError(f"--plan_rule is '{plan_rule}', but must be one of {list(PLAN_RULES)}.")
    budget = float(budget)  # a numpy number has a type of its own, and would compile once more
    dial = config.dial
    if config.planner is None or budget == 1:  # all layers, whatever the logits say
        return Rule(1.0, -np.inf, config.num_gates, -np.inf if dial else 0.0)
    table = rule_table(config, plan_rule)
    if plan_rule == "top_k":
        if dial:
            raise UserError(
                "--plan_rule top_k fixes the number of layers, but this model's budgets are split "
                "between layers and tokens: use --plan_rule threshold."
            )
        depth = int(budget * table.layers + DEPTH_TOLERANCE)
        return Rule(budget, -np.inf, depth - table.stem_layers)
    threshold = float(np.interp(budget, table.budgets, table.thresholds))
    stay = float(np.interp(budget, dial.budgets, dial.stays)) if dial and dial.stays else 0.0
    return Rule(budget, threshold, config.num_gates, stay)


def rule_table(config: DPBertConfig, plan_rule: str) -> RuleTable:
    """The table of a model with a planner.

    Raises:
        UserError: the rule is `threshold` and the model was never calibrated.
    """
    assert config.planner is not None
    calibration = config.calibration
    if calibration is None and plan_rule == "threshold":
        raise UserError(
            "This model has no thresholds for --plan_rule threshold: find them with "
            "`eval.py --calibrate SPLIT`, or use --plan_rule top_k."
        )
    return RuleTable(
        config.planner.min_budget,
        config.planner.max_budget,
        config.encoder.num_hidden_layers,
        config.stem_layers,
        config.min_gates,
        calibration.budgets if calibration else (),
        calibration.thresholds if calibration else (),
    )


def traced_rule(config: DPBertConfig, budget: Float[Array, ""], plan_rule: str) -> Rule:
    """`resolve_rule` for a budget that is known only when the program runs."""
    asked: Any = budget
    every = config.num_gates
    if config.planner is None:
        return Rule(asked, -jnp.inf, every)
    table, full = rule_table(config, plan_rule), budget >= 1
    if plan_rule == "top_k":
        inside = jnp.clip(budget, table.low, table.high)
        depth = jnp.floor(inside * table.layers + DEPTH_TOLERANCE)
        gates: Any = jnp.where(full, every, depth - table.stem_layers)
        return Rule(asked, -jnp.inf, gates)

    def calibrated(values: tuple[float, ...]) -> Any:
        found = jnp.interp(budget, jnp.array(table.budgets), jnp.array(values))
        return jnp.where(full, -jnp.inf, found)

    stays = config.dial.stays if config.dial else None
    stay: Any = calibrated(stays) if stays else 0.0
    return Rule(asked, calibrated(table.thresholds), every, stay)
