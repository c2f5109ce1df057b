"""The rule in an ONNX graph: from `budget` and `gate_logits` to which rows need which layer."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from dpbert_jax.config import DPBertConfig
from dpbert_jax.export.onnx_graph import Graph
from dpbert_jax.policies.rule import DEPTH_TOLERANCE, RuleTable, rule_table


def write_rule(graph: Graph, config: DPBertConfig, plan_rule: str) -> str:
    """Which rows need which planned layer, bool [B, P]; as `policies.gates.hard_gates`."""
    table = rule_table(config, plan_rule)
    full = graph.add("GreaterOrEqual", "budget", graph.constant("one", 1))
    if plan_rule == "top_k":
        return graph.add("Less", _rank(graph, config), _top_k(graph, config, table, full))
    lowest = graph.constant("lowest", -np.inf)
    calibrated = interpolated(graph, "threshold", table.budgets, table.thresholds)
    threshold = graph.add("Where", full, lowest, calibrated)
    passes = graph.add("GreaterOrEqual", "gate_logits", threshold)
    if not table.min_gates:
        return passes
    least = graph.constant("min_gates", table.min_gates)
    return graph.add("Or", passes, graph.add("Less", _rank(graph, config), least))


def interpolated(graph: Graph, name: str, budgets: Sequence[float], values: Sequence[float]) -> str:
    """The value of `budget`, linear between the grid's points."""
    start = graph.constant(f"{name}.first", values[0])
    if len(budgets) == 1:
        return start
    low = graph.constant(f"{name}.low", budgets[:-1])
    high = graph.constant(f"{name}.high", budgets[1:])
    slope = graph.constant(f"{name}.slope", np.diff(values) / np.diff(budgets))
    inside = graph.add("Max", graph.add("Min", "budget", high), low)
    rises = graph.add("Mul", graph.add("Sub", inside, low), slope)
    return graph.add("Add", start, graph.add("ReduceSum", rises, keepdims=0))


def _top_k(graph: Graph, config: DPBertConfig, table: RuleTable, full: str) -> str:
    """How many planned layers `budget` pays for."""
    low = graph.constant("budget.low", table.low)
    high = graph.constant("budget.high", table.high)
    inside = graph.add("Max", graph.add("Min", "budget", high), low)
    layers = graph.add("Mul", inside, graph.constant("layers", table.layers))
    tolerance = graph.constant("tolerance", DEPTH_TOLERANCE)
    layers = graph.add("Floor", graph.add("Add", layers, tolerance))
    gates = graph.add("Sub", layers, graph.constant("stem_layers", table.stem_layers))
    return graph.add("Where", full, graph.constant("num_gates", config.num_gates), gates)


def _rank(graph: Graph, config: DPBertConfig) -> str:
    """The place of each gate logit in its row, float [B, P]; ties fall to the lower layer."""
    middle, last = (graph.constant(f"axis_{axis}", [axis], np.int64) for axis in (1, 2))
    own = graph.add("Unsqueeze", "gate_logits", last)  # [B, P, 1]
    other = graph.add("Unsqueeze", "gate_logits", middle)  # [B, 1, P]
    lower = graph.constant("lower", np.tri(config.num_gates, k=-1), bool)
    tied = graph.add("And", graph.add("Equal", other, own), lower)
    ahead = graph.add("Or", graph.add("Greater", other, own), tied)
    counted = graph.add("Cast", ahead, to=TensorProto.FLOAT)
    return graph.add("ReduceSum", counted, last, keepdims=0)
