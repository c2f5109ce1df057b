"""int8 products of an ONNX graph: weights quantised beforehand, activations as they come.

Every token has a scale of its own. onnxruntime's own tool gives one scale to a whole batch, so that
what it answers to a text depends on the texts beside it.
"""

import numpy as np

from dpbert_jax.export.onnx_graph import MICROSOFT, Graph

# A CPU without VNNI adds two products of a uint8 and an int8 in 16 bits, and saturates: with
# weights of up to 64, half of what eight bits hold, 2 * 255 * 64 still fits.
WEIGHT_BOUND = 64
ACTIVATION_BOUND = 127  # around a zero point of 128


def int8_product(graph: Graph, inputs: str, name: str, kernel: np.ndarray) -> str:
    """inputs [B, S, in] times the kernel [in, out], which has one scale a column."""
    largest = np.maximum(np.abs(kernel).max(axis=0), np.finfo(np.float32).tiny)
    quantized = np.round(kernel / largest * WEIGHT_BOUND)

    top = graph.add("ReduceMax", graph.add("Abs", inputs), axes=[-1])  # [B, S, 1]
    # A token of zeros divides by zero; whatever integer that gives, it is multiplied by zero below.
    share = graph.add("Div", inputs, top)
    middle = graph.constant("zero_point", 128, np.uint8)
    step = graph.constant("activation_step", 1 / ACTIVATION_BOUND)
    product = graph.add(
        "MatMulIntegerToFloat",
        graph.add("QuantizeLinear", share, step, middle),
        graph.constant(f"{name}.kernel_quantized", quantized, np.int8),
        step,
        graph.constant(f"{name}.kernel_scale", largest / WEIGHT_BOUND),
        middle,
        domain=MICROSOFT,
    )
    return graph.add("Mul", product, top)
