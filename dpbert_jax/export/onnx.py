"""A dense BERT as a plain ONNX graph, written node by node from the parameters.

Only standard operators, in the pattern that PyTorch's exporter gives a BERT, which the graph
optimisers of runtimes know how to fuse.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from dpbert_jax.config import EncoderConfig
from dpbert_jax.errors import UserError
from dpbert_jax.export.onnx_graph import Graph
from dpbert_jax.policies.dpbert import Params

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def dense_onnx(config: EncoderConfig, params: Params) -> onnx.ModelProto:
    """The dense model: int64 [batch, sequence] inputs, float32 `logits`, dynamic sizes.

    More tokens than `max_position_embeddings` are an error of the runtime.

    Raises:
        UserError: the activation is none that can be written.
    """
    if config.hidden_act != "gelu":
        raise UserError(f"hidden_act '{config.hidden_act}' cannot be written to ONNX, only 'gelu'.")
    graph = Graph()
    states = write_embeddings(graph, config, params["embeddings"])
    mask = "attention_mask"
    for axis in (1, 2):
        mask = graph.add("Unsqueeze", mask, graph.constant(f"axis_{axis}", [axis], np.int64))
    mask = graph.add("Cast", mask, to=TensorProto.FLOAT)
    masked = graph.add("Sub", graph.constant("one", 1), mask)
    bias = graph.add("Mul", masked, graph.constant("lowest", np.finfo(np.float32).min))
    for i in range(config.num_hidden_layers):
        states = _layer(graph, config, params[f"layer_{i}"], f"layer_{i}", states, bias)
    first = graph.add("Gather", states, graph.constant("first", 0, np.int64), axis=1)
    pooled = graph.add("Tanh", graph.gemm(first, "pooler", params["head"]["pooler"]))
    graph.gemm(pooled, "classifier", params["head"]["classifier"], output="logits")
    shape = ["batch", "sequence"]
    return graph.as_model(
        "bert",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in INPUTS],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", config.num_labels])],
    )


def write_embeddings(graph: Graph, config: EncoderConfig, params: Params) -> str:
    def table(name: str, ids: str) -> str:
        return graph.add("Gather", graph.constant(name, params[name]["embedding"]), ids)

    words, types = table("word_embeddings", INPUTS[0]), table("token_type_embeddings", INPUTS[2])
    which = graph.constant("axis", 1, np.int64)
    length = graph.add("Gather", graph.add("Shape", INPUTS[0]), which, axis=0)
    # Looked up in a table that ends at the last position: beyond it the runtime refuses, and names
    # this node and the length in its error.
    longest = config.max_position_embeddings
    lengths = graph.constant("lengths", np.arange(longest + 1), np.int64)
    length = graph.add("Gather", lengths, length, output=f"at_most_{longest}_tokens")
    length = graph.add("Unsqueeze", length, graph.constant("axis_0", [0], np.int64))
    every = np.arange(config.max_position_embeddings)[None]
    positions = graph.add(
        "Slice",
        graph.constant("positions", every, np.int64),
        graph.constant("start", [0], np.int64),
        length,
        graph.constant("axes", [1], np.int64),
    )
    total = graph.add(
        "Add", graph.add("Add", words, types), table("position_embeddings", positions)
    )
    return graph.layer_norm(total, "embeddings", params["layer_norm"], config.layer_norm_eps)


def _layer(
    graph: Graph, config: EncoderConfig, params: Params, name: str, states: str, bias: str
) -> str:
    heads = [0, 0, config.num_attention_heads, config.head_size]

    def split(part: str, order: list[int]) -> str:
        product = graph.dense(states, f"{name}.{part}", params[part])
        shape = graph.constant("heads", heads, np.int64)
        return graph.add("Transpose", graph.add("Reshape", product, shape), perm=order)

    query, key = split("query", [0, 2, 1, 3]), split("key", [0, 2, 3, 1])
    scale = graph.constant("root", config.head_size**0.5)
    scores = graph.add("Div", graph.add("MatMul", query, key), scale)
    probs = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
    context = graph.add("MatMul", probs, split("value", [0, 2, 1, 3]))
    flat = graph.constant("flat", [0, 0, config.hidden_size], np.int64)
    context = graph.add("Reshape", graph.add("Transpose", context, perm=[0, 2, 1, 3]), flat)
    attended = graph.dense(context, f"{name}.attention_output", params["attention_output"])

    def norm(total: str, part: str) -> str:
        return graph.layer_norm(total, f"{name}.{part}", params[part], config.layer_norm_eps)

    states = norm(graph.add("Add", attended, states), "attention_layer_norm")
    wide = graph.dense(states, f"{name}.intermediate", params["intermediate"])
    error = graph.add("Erf", graph.add("Div", wide, graph.constant("root_2", 2**0.5)))
    gate = graph.add("Add", error, graph.constant("one", 1))
    wide = graph.add("Mul", graph.add("Mul", wide, gate), graph.constant("half", 0.5))
    output = graph.dense(wide, f"{name}.output", params["output"])
    return norm(graph.add("Add", output, states), "output_layer_norm")
