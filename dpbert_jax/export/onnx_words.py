"""The word embeddings of an ONNX graph: a plain table, or the factors of a compressed one."""

import numpy as np
from onnx import TensorProto

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.operations import Params
from dpbert_jax.encoder.word_table import PLACE, cluster_name, cluster_starts
from dpbert_jax.export.onnx_graph import Graph


def write_words(graph: Graph, config: EncoderConfig, params: Params, ids: str) -> str:
    """What `params` say of each token, [B, S, E]; as `encoder.word_table.look_up`."""
    if config.compression is None:
        return graph.add("Gather", graph.constant("word_embeddings", params["embedding"]), ids)
    place = graph.add("Gather", graph.constant("words.place", params[PLACE], np.int32), ids)
    total = ""
    for number, start in enumerate(cluster_starts(config.compression)):
        name, size = cluster_name(number), config.compression.sizes[number]
        product = _cluster(graph, params[name], f"words.{name}", place, start, size)
        total = graph.add("Add", total, product) if total else product
    return total


def _cluster(graph: Graph, factors: Params, name: str, place: str, start: int, size: int) -> str:
    """The product of a cluster's factors; zero for tokens of others."""
    zero = graph.constant("words.zero", 0, np.int32)
    after = graph.constant(f"{name}.size", size, np.int32)
    last = graph.constant(f"{name}.last", size - 1, np.int32)
    own = graph.add("Sub", place, graph.constant(f"{name}.start", start, np.int32))
    inside = graph.add("And", graph.add("GreaterOrEqual", own, zero), graph.add("Less", own, after))
    own = graph.add("Max", graph.add("Min", own, last), zero)
    scale = graph.add("Gather", graph.constant(f"{name}.row_scale", factors["row_scale"]), own)
    scale = graph.add("Where", inside, scale, graph.constant("words.none", 0))
    axis = graph.constant("axis_2", [2], np.int64)
    rows = graph.add("Gather", graph.constant(f"{name}.rows", factors["rows"], np.int8), own)
    rows = graph.add("Cast", rows, to=TensorProto.FLOAT)
    rows = graph.add("Mul", rows, graph.add("Unsqueeze", scale, axis))
    scale = np.asarray(factors["basis_scale"])[:, None]
    return graph.add("MatMul", rows, graph.stored(f"{name}.basis", factors["basis"], scale))
