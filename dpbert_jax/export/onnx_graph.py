"""A builder of ONNX graphs: nodes and constants, each added under a name of its own."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dpbert_jax.encoder.operations import Params

MICROSOFT = "com.microsoft"  # operators of onnxruntime's own: whole parts of a transformer


class Graph:
    """Nodes and constants under construction; every method returns the name of its output.

    A branch (of an `If`) is a graph whose constants are those of the graph around it.
    """

    def __init__(self, around: "Graph | None" = None, name: str = "") -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = around.constants if around else {}
        self.domains: set[str] = around.domains if around else set()  # of all operators
        self._prefix = f"{name}." if name else ""

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        # No ascontiguousarray: it makes a scalar an array of one.
        array = np.array(value, dtype, order="C")
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(
        self,
        kind: str,
        *inputs: str,
        output: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        output = output or f"{self._prefix}{kind}_{len(self.nodes)}"
        self.domains.add(domain)
        # Errors of a runtime name the node: it is called as its output is.
        node = helper.make_node(
            kind, list(inputs), [output], name=output, domain=domain, **attributes
        )
        self.nodes.append(node)
        return output

    def dense(self, inputs: str, name: str, params: Params) -> str:
        kernel = self.constant(f"{name}.kernel", params["kernel"])
        product = self.add("MatMul", inputs, kernel)
        return self.add("Add", product, self.constant(f"{name}.bias", params["bias"]))

    def gemm(self, inputs: str, name: str, params: Params, output: str | None = None) -> str:
        """The same for a matrix [B, in]."""
        kernel = self.constant(f"{name}.kernel", params["kernel"])
        bias = self.constant(f"{name}.bias", params["bias"])
        return self.add("Gemm", inputs, kernel, bias, output=output)

    def stored(self, name: str, values: Any, scale: Any) -> str:
        """A float32 matrix that lies in int8 and is made anew in each call; `scale` broadcasts.

        Not by one node: of one that scales columns, and the product behind it, onnxruntime makes
        its MatMulNBits, which rounds activations too. Not by a Cast: as a constant's, it would be
        computed once and kept in float32.
        """
        whole = self.constant(f"{name}.stored", values, np.int8)
        whole = self.add("DequantizeLinear", whole, self.constant("one", 1))
        return self.add("Mul", whole, self.constant(f"{name}.scale", scale))

    def layer_norm(self, inputs: str, name: str, params: Params, epsilon: float) -> str:
        scale = self.constant(f"{name}.scale", params["scale"])
        shift = self.constant(f"{name}.bias", params["bias"])
        return self.add("LayerNormalization", inputs, scale, shift, axis=-1, epsilon=epsilon)

    def gelu(self, inputs: str) -> str:
        """The exact one, in the pattern that graph optimisers fuse."""
        error = self.add("Erf", self.add("Div", inputs, self.constant("root_2", 2**0.5)))
        gate = self.add("Add", error, self.constant("one", 1))
        return self.add("Mul", self.add("Mul", inputs, gate), self.constant("half", 0.5))

    def gelu_new(self, inputs: str) -> str:
        """The one by tanh."""
        cube = self.add("Mul", self.add("Mul", inputs, inputs), inputs)
        cube = self.add("Mul", cube, self.constant("cubic", 0.044715))
        root = self.constant("root_2_by_pi", (2 / np.pi) ** 0.5)
        inner = self.add("Tanh", self.add("Mul", self.add("Add", inputs, cube), root))
        gate = self.add("Add", inner, self.constant("one", 1))
        return self.add("Mul", self.add("Mul", inputs, gate), self.constant("half", 0.5))

    def split(self, inputs: str, parts: int) -> list[str]:
        """Equal parts of the last axis."""
        name = f"{self._prefix}Split_{len(self.nodes)}"
        outputs = [f"{name}.{part}" for part in range(parts)]
        self.domains.add("")
        self.nodes.append(helper.make_node("Split", [inputs], outputs, name=name, axis=-1))
        return outputs

    def top(self, inputs: str, count: str, values: str, places: str) -> tuple[str, str]:
        """The `count` largest along axis 1, and their places; of equal ones the first come first.

        `values` and `places` are what the two outputs are called.
        """
        self.domains.add("")
        node = helper.make_node("TopK", [inputs, count], [values, places], name=values, axis=1)
        self.nodes.append(node)
        return values, places

    def as_branch(self, name: str, output: str, shape: list[str | int]) -> onnx.GraphProto:
        """The branch of an `If`: no inputs, it reads what is around it."""
        made = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape)
        return helper.make_graph(self.nodes, name, [], [made])

    def as_model(self, name: str, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        made = helper.make_graph(self.nodes, name, inputs, outputs, list(self.constants.values()))
        versions = {"": 17, MICROSOFT: 1}
        opsets = [helper.make_opsetid(name, versions[name]) for name in sorted(self.domains)]
        return helper.make_model(made, opset_imports=opsets, ir_version=9)
