"""The exported model as a peer that skips: rule top_k, the budget comes with the call."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpbert_jax.config_file import read_config
from dpbert_jax.export.torch_folder import save_torch_code
from dpbert_jax.hub.folders import save_weights
from dpbert_jax.model import Model

PACKAGES = {
    "export-onnx": ("onnx", "onnxruntime"),
    "export-int8": ("onnx", "onnxruntime"),
    "export-torch": ("torch",),
}
BUDGET = "budget"  # beside the inputs of a call: layers kept, as a share of all

Call = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def with_budget(batch: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    """The batch of a call that runs a share of the layers."""
    return {**batch, BUDGET: np.array(share, np.float32)}


def write_export(folder: Path, name: str, model: Model) -> None:
    """Writes what the peer loads; every number of layers that the stem allows can be asked for."""
    config, params = model.config, model.params
    assert config.planner is not None
    lowest = config.stem_layers / config.encoder.num_hidden_layers
    planner = dataclasses.replace(config.planner, min_budget=lowest, max_budget=1.0, min_layers=0)
    config = dataclasses.replace(config, planner=planner)
    if name == "export-torch":
        (folder / name).mkdir()
        save_weights(folder / name, config, params)
        save_torch_code(folder / name, config)
        return
    import onnx

    from dpbert_jax.export.onnx_planned import planned_onnx

    graph = planned_onnx(config, params, "top_k", int8=name == "export-int8")
    onnx.save(graph, str(folder / f"{name}.onnx"))


def load_exported_torch(folder: Path, threads: int) -> Call:
    torch: Any = importlib.import_module("torch")
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    load = AutoModelForSequenceClassification.from_pretrained
    model = load(folder / "export-torch", trust_remote_code=True).eval()
    names = read_config(folder / "export-torch").encoder.inputs

    def call(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        # The share crossed in float32: 1/3 must not become a layer less.
        budget = min(float(batch[BUDGET]) + 1e-6, 1.0)
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.int64(batch[name])) for name in names}
            return model(**tensors, budget=budget, plan_rule="top_k").logits.numpy()

    return call


def onnx_session(path: Path, threads: int) -> Any:
    """A graph in onnxruntime, on the CPU."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_exported_onnx(name: str, folder: Path, threads: int) -> Call:
    session = onnx_session(folder / f"{name}.onnx", threads)
    names = [given.name for given in session.get_inputs()]

    def call(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        inputs = {n: batch[n] if n == BUDGET else np.int64(batch[n]) for n in names}
        return session.run(["logits"], inputs)[0]

    return call
