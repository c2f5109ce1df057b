"""What both forms of an ONNX graph share: embeddings, attention's bias by distance, the head."""

import numpy as np
from onnx import TensorProto

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.attention import FARTHEST, distance_buckets
from dpbert_jax.encoder.operations import Params
from dpbert_jax.export.onnx_adapters import Own
from dpbert_jax.export.onnx_graph import Graph
from dpbert_jax.export.onnx_quantize import stored_product, stored_rows
from dpbert_jax.export.onnx_words import write_words

IDS = "input_ids"


def write_embeddings(
    graph: Graph, config: EncoderConfig, params: Params, stored: bool = False
) -> str:
    """What the first layer reads, [B, S, D]; with `stored`, positions lie in int8."""

    def table(name: str, ids: str) -> str:
        return graph.add("Gather", graph.constant(name, params[name]["embedding"]), ids)

    total = write_words(graph, config, params["word_embeddings"], IDS)
    if "token_type_ids" in config.inputs:
        total = graph.add("Add", total, table("token_type_embeddings", "token_type_ids"))
    elif config.family.token_types:  # a single row, the same for each token
        row = params["token_type_embeddings"]["embedding"][0]
        total = graph.add("Add", total, graph.constant("token_type", row))
    places = _positions(graph, config)
    if stored:
        positions = np.asarray(params["position_embeddings"]["embedding"])
        places = stored_rows(graph, "position_embeddings", positions, places)
    else:
        places = table("position_embeddings", places)
    total = graph.add("Add", total, places)
    epsilon = config.layer_norm_eps
    states = graph.layer_norm(total, "embeddings", params["layer_norm"], epsilon)
    return graph.dense(states, "projection", params["projection"]) if config.projects else states


def _positions(graph: Graph, config: EncoderConfig) -> str:
    """The position of each token, as `encoder.embeddings.positions_of` counts."""
    length, axis = _length(graph, config), graph.constant("axis_1", [1], np.int64)
    if config.family.positions_after_padding:
        pad = graph.constant("pad", config.pad_token_id, np.int64)
        padding = graph.add("Equal", IDS, pad)
        real = graph.add("Cast", graph.add("Not", padding), to=TensorProto.INT64)
        counted = graph.add("CumSum", real, graph.constant("along", 1, np.int64))
        every = graph.add("Add", graph.add("Mul", counted, real), pad)
    else:
        every = np.arange(config.longest_input)[None]
        every = graph.constant("positions", every, np.int64)
    return graph.add("Slice", every, graph.constant("start", [0], np.int64), length, axis)


def _length(graph: Graph, config: EncoderConfig) -> str:
    """Tokens of a row, [1].

    Looked up in a table that ends at the last position: beyond it the runtime refuses, and names
    this node and the length in its error.
    """
    which, longest = graph.constant("axis", 1, np.int64), config.longest_input
    length = graph.add("Gather", graph.add("Shape", IDS), which, axis=0)
    lengths = graph.constant("lengths", np.arange(longest + 1), np.int64)
    length = graph.add("Gather", lengths, length, output=f"at_most_{longest}_tokens")
    return graph.add("Unsqueeze", length, graph.constant("axis_0", [0], np.int64))


def write_relative_bias(graph: Graph, config: EncoderConfig, params: Params) -> str:
    """What is added to all layers' scores by distance, [1, H, S, S]; as `relative_bias`."""
    first, second = (graph.constant(f"axis_{axis}", [axis], np.int64) for axis in (0, 1))
    zero, one = (graph.constant(name, n, np.int64) for n, name in enumerate(("from_0", "step")))
    which = graph.constant("axis", 1, np.int64)
    length = graph.add("Gather", graph.add("Shape", IDS), which, axis=0)
    places = graph.add("Range", zero, length, one)
    query, key = graph.add("Unsqueeze", places, second), graph.add("Unsqueeze", places, first)
    near, far = (graph.constant(f"distance_{n}", n, np.int64) for n in (-FARTHEST, FARTHEST))
    distance = graph.add("Clip", graph.add("Sub", query, key), near, far)
    by_distance = np.asarray(params["embedding"])[distance_buckets(config)]
    table = graph.constant("bias_by_distance", by_distance)
    bias = graph.add("Gather", table, graph.add("Add", distance, far))  # [S, S, H]
    return graph.add("Unsqueeze", graph.add("Transpose", bias, perm=[2, 0, 1]), first)


def write_padding_bias(graph: Graph, mask: str) -> str:
    """What is added to scores, [B, 1, 1, S]: the lowest float where a token is padding."""
    for axis in (1, 2):
        mask = graph.add("Unsqueeze", mask, graph.constant(f"axis_{axis}", [axis], np.int64))
    mask = graph.add("Cast", mask, to=TensorProto.FLOAT)
    masked = graph.add("Sub", graph.constant("one", 1), mask)
    return graph.add("Mul", masked, graph.constant("lowest_score", np.finfo(np.float32).min))


def write_attention(graph: Graph, config: EncoderConfig, parts: list[str], bias: str) -> str:
    """Attention of query, key and value [B, S, D], in the pattern that PyTorch's exporter gives."""
    heads = graph.constant("heads", [0, 0, config.num_attention_heads, config.head_size], np.int64)
    query, key, value = (
        graph.add("Transpose", graph.add("Reshape", part, heads), perm=order)
        for part, order in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scale = graph.constant("root", config.head_size**0.5)
    scores = graph.add("Div", graph.add("MatMul", query, key), scale)
    probs = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
    context = graph.add("Transpose", graph.add("MatMul", probs, value), perm=[0, 2, 1, 3])
    flat = graph.constant("flat_heads", [0, 0, config.hidden_size], np.int64)
    return graph.add("Reshape", context, flat)


def write_head(
    graph: Graph,
    config: EncoderConfig,
    params: Params,
    states: str,
    own: Own | None = None,
    stored: bool = False,
) -> None:
    """`logits`, from the first token's state.

    `own` are adapters, where there are any; with `stored`, the first kernel lies in int8.
    """
    first = graph.add("Gather", states, graph.constant("first", 0, np.int64), axis=1)
    if stored:
        pooled = stored_product(graph, first, "pooler", np.asarray(params["pooler"]["kernel"]))
        pooled = graph.add("Add", pooled, graph.constant("pooler.bias", params["pooler"]["bias"]))
    else:
        pooled = graph.gemm(first, "pooler", params["pooler"])
    axis = graph.constant("axis_1", [1], np.int64)
    if own:
        pooled = graph.add("Add", pooled, own.value(graph, "pooler", "bias"))
        if own.has("pooler"):
            tokens = graph.add("Unsqueeze", first, axis)
            added = own.low_rank(graph, "pooler", tokens)
            pooled = graph.add("Add", pooled, graph.add("Squeeze", added, axis))
    if config.family.head_activation == "gelu":
        pooled = graph.gelu(pooled)
    else:
        kinds = {"tanh": "Tanh", "relu": "Relu"}
        pooled = graph.add(kinds[config.family.head_activation], pooled)
    if own is None:
        graph.gemm(pooled, "classifier", params["classifier"], output="logits")
        return
    shared = graph.gemm(pooled, "classifier", params["classifier"])
    kernel = own.value(graph, "classifier", "kernel")  # [B, D, C]
    added = graph.add("MatMul", graph.add("Unsqueeze", pooled, axis), kernel)
    total = graph.add("Add", shared, graph.add("Squeeze", added, axis))
    graph.add("Add", total, own.value(graph, "classifier", "bias"), output="logits")
