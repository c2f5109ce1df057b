"""A dense encoder as a plain ONNX graph, written node by node from the parameters.

Only standard operators, in the pattern that PyTorch's exporter gives a BERT, which the graph
optimisers of runtimes know how to fuse.
"""

import onnx
from onnx import TensorProto, helper

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.attention import RELATIVE
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.export.onnx_graph import Graph
from dpbert_jax.export.onnx_parts import (
    write_attention,
    write_embeddings,
    write_head,
    write_padding_bias,
    write_relative_bias,
)

PARTS = ("query", "key", "value")


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
    bias = write_padding_bias(graph, "attention_mask")
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
    parts = [graph.dense(states, f"{name}.{part}", params[part]) for part in PARTS]
    context = write_attention(graph, config, parts, bias)
    attended = graph.dense(context, f"{name}.attention_output", params["attention_output"])

    def norm(total: str, part: str) -> str:
        return graph.layer_norm(total, f"{name}.{part}", params[part], config.layer_norm_eps)

    states = norm(graph.add("Add", attended, states), "attention_layer_norm")
    wide = graph.dense(states, f"{name}.intermediate", params["intermediate"])
    output = graph.dense(graph.gelu(wide), f"{name}.output", params["output"])
    return norm(graph.add("Add", output, states), "output_layer_norm")
