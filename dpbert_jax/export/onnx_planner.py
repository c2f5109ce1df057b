"""The planner in an ONNX graph."""

import numpy as np
from onnx import TensorProto

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.operations import Params
from dpbert_jax.export.onnx_graph import Graph


def write_planner(graph: Graph, config: DPBertConfig, params: Params, states: str) -> None:
    """`gate_logits`, as `policies.planner` computes them."""
    assert config.planner is not None
    hidden, width = config.encoder.hidden_size, config.planner.hidden_size
    middle, last = (graph.constant(f"axis_{axis}", [axis], np.int64) for axis in (1, 2))
    weights = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    length = graph.add("ReduceSum", weights, middle)  # [B, 1]
    total = graph.add("MatMul", graph.add("Unsqueeze", weights, middle), states)  # [B, 1, D]
    tokens = graph.add("Max", length, graph.constant("one", 1))
    mean = graph.add("Div", total, graph.add("Unsqueeze", tokens, last))
    start = graph.constant("from", [0], np.int64)
    pair = graph.add("Concat", mean, graph.add("Slice", states, start, middle, middle), axis=1)
    unit = {"scale": np.full(hidden, (2 * hidden) ** -0.5), "bias": np.zeros(hidden)}
    pair = graph.layer_norm(pair, "summary", unit, 1e-6)  # [B, 2, D]
    summary = graph.add("Reshape", pair, graph.constant("flat", [0, 2 * hidden], np.int64))
    doublings = graph.add("Log", graph.add("Mul", length, graph.constant("per_32", 1 / 32)))
    doublings = graph.add("Mul", doublings, graph.constant("per_log_2", 1 / np.log(2)))
    features = graph.add("Concat", summary, doublings, axis=1)
    inner = graph.add("Tanh", graph.gemm(features, "planner.input", params["input"]))
    inner = graph.add("Mul", inner, graph.constant("planner.unit", width**-0.5))
    logits = graph.gemm(inner, "planner.output", params["output"])
    bound = graph.constant("planner.bound", config.planner.logit_bound)
    squeezed = graph.add("Tanh", graph.add("Div", logits, bound))
    graph.add("Mul", squeezed, bound, output="gate_logits")
