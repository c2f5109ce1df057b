"""TR-BERT's selectors in an ONNX graph: the tokens that are left are moved together."""

from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.operations import Params
from dpbert_jax.export.onnx_graph import Graph
from dpbert_jax.export.onnx_rule import interpolated


class Left(NamedTuple):
    """The tokens that are left, by the names of their states [B, S', D] and mask int32 [B, S']."""

    states: str
    mask: str
    sequence: str  # what S' is called


def write_stay(graph: Graph, config: DPBertConfig) -> str:
    """The stay threshold of `budget`; 1 and more keeps all tokens where the model has a dial."""
    if config.dial is None:
        return graph.constant("stay", 0)
    stays: Any = config.dial.stays
    stay = interpolated(graph, "stay", config.dial.budgets, stays)
    full = graph.add("GreaterOrEqual", "budget", graph.constant("one", 1))
    return graph.add("Where", full, graph.constant("lowest", -np.inf), stay)


def write_selection(graph: Graph, name: str, params: Params, left: Left, stay: str) -> Left:
    """Those of the tokens that a selector lets stay, as `policies.tokens` has it.

    As many places are left as the row of most tokens needs. Which token was where is told by
    nothing but its state: positions are in the embeddings.
    """
    second, last = (graph.constant(f"axis_{axis}", [axis], np.int64) for axis in (1, 2))
    wide = graph.gelu(graph.dense(left.states, f"{name}.wide", params["wide"]))
    said = graph.add("Squeeze", graph.dense(wide, f"{name}.narrow", params["narrow"]), last)
    stays = graph.add("Cast", graph.add("GreaterOrEqual", said, stay), to=TensorProto.INT32)
    stays = graph.add("Mul", stays, left.mask)
    # The first token always stays.
    start, end = (graph.constant(key, [n], np.int64) for key, n in (("from", 0), ("to_end", 2**31)))
    first = graph.add("Slice", left.mask, start, second, second)
    stays = graph.add("Concat", first, graph.add("Slice", stays, second, end, second), axis=1)
    most = graph.add("ReduceMax", graph.add("ReduceSum", stays, second), keepdims=0)
    most = graph.add("Unsqueeze", graph.add("Cast", most, to=TensorProto.INT64), start)
    mask, places = graph.top(stays, most, f"{name}.mask", f"{name}.places")
    states = graph.add("GatherND", left.states, graph.add("Unsqueeze", places, last), batch_dims=1)
    return Left(states, mask, f"{name}.left")


def write_tokens(graph: Graph, masks: list[str]) -> None:
    """`tokens` [B, L]: how many each layer has; `masks` are those of the layers."""
    axis = graph.constant("axis_1", [1], np.int64)
    counts = {mask: graph.add("ReduceSum", mask, axis) for mask in dict.fromkeys(masks)}
    every = graph.add("Concat", *[counts[mask] for mask in masks], axis=1)
    graph.add("Cast", every, to=TensorProto.FLOAT, output="tokens")
