"""Dynamic int8 quantisation of an ONNX graph, by onnxruntime's own tool."""

import logging
import tempfile
from pathlib import Path

import onnx


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with int8 weights, one scale a column; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Its advice to preprocess the graph is meant for graphs that nobody has fused.
    logging.getLogger().addFilter(_is_no_advice)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(
                model,
                path,
                per_channel=True,
                weight_type=QuantType.QInt8,
                # Its inference of types does not know the fused operators.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
            return onnx.load(path)
    finally:
        logging.getLogger().removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
