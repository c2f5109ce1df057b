"""A dense encoder as a plain ONNX graph, written node by node from the parameters.

Only standard operators, in the pattern that PyTorch's exporter gives a BERT, which the graph
optimisers of runtimes know how to fuse.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.attention import RELATIVE
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.export.onnx_graph import Graph
from dpbert_jax.export.onnx_parts import write_embeddings, write_head, write_relative_bias


def dense_onnx(config: EncoderConfig, params: Params) -> onnx.ModelProto:
    """The dense model: int64 [batch, sequence] inputs, float32 `logits`, dynamic sizes.

    The inputs are the family's (`config.inputs`). More tokens than there are positions for are an
    error of the runtime.

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
    if config.family.relative_attention:
        relative = write_relative_bias(graph, config, params[RELATIVE])
        bias = graph.add("Add", bias, relative)
    for i in range(config.num_hidden_layers):
        states = _layer(graph, config, params[f"layer_{i}"], f"layer_{i}", states, bias)
    write_head(graph, config, params["head"], states)
    shape = ["batch", "sequence"]
    return graph.as_model(
        config.model_type,
        [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in config.inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", config.num_labels])],
    )


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
    output = graph.dense(graph.gelu(wide), f"{name}.output", params["output"])
    return norm(graph.add("Add", output, states), "output_layer_norm")
