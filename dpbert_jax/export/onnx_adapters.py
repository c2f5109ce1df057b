"""Adapters by depth in an ONNX graph: tables of every depth's, of which each row picks its own."""

from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.operations import Params
from dpbert_jax.export.onnx_graph import Graph


class Own(NamedTuple):
    """The adapters of a layer or of the head, and which ones each row uses."""

    name: str
    params: Params
    slots: str  # int64 [B]

    def has(self, part: str) -> bool:
        return "down" in self.params.get(part, {})

    def value(self, graph: Graph, part: str, leaf: str) -> str:
        """Each row's part of a table, [B, ...]; zeros for plans of all layers."""
        table = np.asarray(self.params[part][leaf])
        table = np.concatenate([table, np.zeros_like(table[:1])])
        name = graph.constant(f"adapters.{self.name}.{part}.{leaf}", table)
        return graph.add("Gather", name, self.slots, axis=0)

    def low_rank(self, graph: Graph, part: str, inputs: str) -> str:
        """What is added to a product; inputs [B, S, D]."""
        inner = graph.add("MatMul", inputs, self.value(graph, part, "down"))
        return graph.add("MatMul", inner, self.value(graph, part, "up"))

    def added(self, graph: Graph, shared: str, part: str, leaf: str) -> str:
        """A vector of all rows with each row's own added; [B, 1, D]."""
        axis = graph.constant("axis_1", [1], np.int64)
        own = graph.add("Unsqueeze", self.value(graph, part, leaf), axis)
        return graph.add("Add", own, shared)


def write_slots(graph: Graph, config: DPBertConfig, needed: str) -> str:
    """Which adapters each row's plan uses, int64 [B]; as `policies.adapted.adapter_slots`."""
    gates = graph.add("Cast", needed, to=TensorProto.INT64)
    axis = graph.constant("axis_1", [1], np.int64)
    depth = graph.add("ReduceSum", gates, axis, keepdims=0)
    return graph.add("Sub", depth, graph.constant("adapters.lowest", config.min_gates, np.int64))


def all_without(graph: Graph, config: DPBertConfig, slots: str) -> str:
    """Whether no row of a batch has adapters: all have plans of all layers; a bool."""
    lowest = graph.add("ReduceMin", slots, keepdims=0)
    none = graph.constant("adapters.none", config.adapted_depths, np.int64)
    return graph.add("Equal", lowest, none)


def where(
    graph: Graph, condition: str, name: str, shape: list[Any], plain: Any, adapted: Any
) -> str:
    """An `If` of two functions of the graph that they write into."""
    branches = {}
    for branch, write in (("then_branch", plain), ("else_branch", adapted)):
        inside = Graph(graph, f"{name}.{branch}")
        branches[branch] = inside.as_branch(f"{name}.{branch}", write(inside), shape)
    return graph.add("If", condition, **branches)
