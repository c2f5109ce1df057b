"""Inference: plan rules, and executors that turn a plan into time saved."""

from dpbert_jax.inference.executors import (
    AUTO,
    EXECUTORS,
    Executor,
    make_executor,
    pick_executor,
)
from dpbert_jax.policies.rule import PLAN_RULES, Rule, resolve_rule

__all__ = [
    "AUTO",
    "EXECUTORS",
    "PLAN_RULES",
    "Executor",
    "Rule",
    "make_executor",
    "pick_executor",
    "resolve_rule",
]
