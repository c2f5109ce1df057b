"""int8 in an ONNX graph: products whose activations are quantised as they come, and weights that
are only stored so.

Of products, every token has a scale of its own. onnxruntime's own tool gives one scale to a whole
batch, so that what it answers to a text depends on the texts beside it.
"""

import numpy as np
from onnx import TensorProto

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.operations import Params
from dpbert_jax.encoder.word_table import round_rows
from dpbert_jax.export.onnx_graph import MICROSOFT, Graph

# A CPU without VNNI adds two products of a uint8 and an int8 in 16 bits, and saturates: with
# weights of up to 64, half of what eight bits hold, 2 * 255 * 64 still fits.
WEIGHT_BOUND = 64
ACTIVATION_BOUND = 127  # around a zero point of 128
STORED_PIECE = 2**17  # numbers of a stored kernel that are float32 at a time


def int8_product(graph: Graph, inputs: str, name: str, kernel: np.ndarray) -> str:
    """inputs [B, S, in] times the kernel [in, out], which has one scale a column."""
    quantized, top, step, middle = _quantized_inputs(graph, inputs)
    weights, scale = _quantized_kernel(kernel)
    product = graph.add(
        "MatMulIntegerToFloat",
        quantized,
        graph.constant(f"{name}.kernel_quantized", weights, np.int8),
        step,
        graph.constant(f"{name}.kernel_scale", scale),
        middle,
        domain=MICROSOFT,
    )
    return graph.add("Mul", product, top)


def standard_int8_product(graph: Graph, inputs: str, name: str, kernel: np.ndarray) -> str:
    """The same in standard operators."""
    quantized, top, _, middle = _quantized_inputs(graph, inputs)
    weights, scale = _quantized_kernel(kernel)
    weights = graph.constant(f"{name}.kernel_quantized", weights, np.int8)
    whole = graph.add("MatMulInteger", quantized, weights, middle)
    product = graph.add("Cast", whole, to=TensorProto.FLOAT)
    scale = graph.constant(f"{name}.kernel_scale", scale / ACTIVATION_BOUND)
    return graph.add("Mul", graph.add("Mul", product, scale), top)


def _quantized_inputs(graph: Graph, inputs: str) -> tuple[str, str, str, str]:
    """Activations in uint8, each token's largest [B, S, 1], the step and the zero point."""
    top = graph.add("ReduceMax", graph.add("Abs", inputs), axes=[-1])  # [B, S, 1]
    # A token of zeros divides by zero; whatever integer that gives, it is multiplied by zero below.
    share = graph.add("Div", inputs, top)
    middle = graph.constant("zero_point", 128, np.uint8)
    step = graph.constant("activation_step", 1 / ACTIVATION_BOUND)
    return graph.add("QuantizeLinear", share, step, middle), top, step, middle


def _quantized_kernel(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers within the bound, and the scale of each column."""
    largest = np.maximum(np.abs(kernel).max(axis=0), np.finfo(np.float32).tiny)
    return np.round(kernel / largest * WEIGHT_BOUND), largest / WEIGHT_BOUND


def stored_product(graph: Graph, inputs: str, name: str, kernel: np.ndarray) -> str:
    """A float32 product whose kernel [in, out] lies in int8, with one scale a column.

    It is made float32 piece by piece, so that never much of it is.
    """
    values, scale = round_rows(kernel.T)
    pieces = -(-kernel.size // STORED_PIECE)
    columns = zip(
        np.array_split(values.T, pieces, axis=1), np.array_split(scale, pieces), strict=True
    )
    products = [
        graph.add("MatMul", inputs, graph.stored(f"{name}.kernel.{number}", *piece))
        for number, piece in enumerate(columns)
    ]
    return graph.add("Concat", *products, axis=-1) if pieces > 1 else products[0]


def stored_rows(graph: Graph, name: str, table: np.ndarray, ids: str) -> str:
    """Rows of a table that lies in int8, each with a scale of its own; float32."""
    values, scale = round_rows(table)
    rows = graph.add("Gather", graph.constant(f"{name}.stored", values, np.int8), ids)
    scale = graph.add("Gather", graph.constant(f"{name}.scale", scale[:, None]), ids)
    return graph.add("Mul", graph.add("Cast", rows, to=TensorProto.FLOAT), scale)


def stored_params(config: DPBertConfig, params: Params) -> Params:
    """The parameters as `stored_product` and `stored_rows` give them back.

    Rounded are kernels of the stem and of the head's first product, and the table of positions:
    the planner then looks at what the graph will show it.
    """
    made = dict(params)
    for name in (*(f"layer_{i}" for i in range(config.stem_layers)), "head"):
        made[name] = {
            part: {**leaves, "kernel": _stored(np.asarray(leaves["kernel"]).T).T}
            if "kernel" in leaves and part != "classifier"
            else leaves
            for part, leaves in params[name].items()
        }
    positions = np.asarray(params["embeddings"]["position_embeddings"]["embedding"])
    made["embeddings"] = {
        **params["embeddings"],
        "position_embeddings": {"embedding": _stored(positions)},
    }
    return made


def _stored(values: np.ndarray) -> np.ndarray:
    whole, scale = round_rows(values)
    return whole.astype(np.float32) * scale[:, None]
