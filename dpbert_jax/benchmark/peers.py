"""Peers: the same weights in PyTorch, onnxruntime and OpenVINO, each in a process of its own.

Dense as those runtimes have it, or the model as it is exported to them (`benchmark.exports`).

Apart because their idle threads spin: a runtime in the same process slowed the one measured after
it by a fifth. Each is set as its makers advise for latency on a CPU, with the threads asked for.
"""

import dataclasses
import importlib
import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpbert_jax.benchmark import exports, torch_training
from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.encoder.word_table import expanded
from dpbert_jax.errors import UserError
from dpbert_jax.hub.folders import save_weights
from dpbert_jax.model import Model

PACKAGES = {  # what a peer needs, by the names of their modules
    "torch": ("torch",),
    "onnxruntime": ("onnx", "onnxruntime", "sympy"),  # sympy: of its graph optimiser
    "openvino": ("onnx", "openvino"),
    **exports.PACKAGES,
}
INSTALL = "pip install 'dpbert-jax[peers]'"
SETTLE_SECONDS = 0.05  # for a peer's spinning threads to go to sleep

Call = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def available(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Which peers can run, and why the others cannot."""
    unknown = sorted(set(names) - set(PACKAGES))
    if unknown:
        raise UserError(f"--peers {' '.join(unknown)}: must be of {list(PACKAGES)}.")
    missing = {
        name: [module for module in PACKAGES[name] if importlib.util.find_spec(module) is None]
        for name in names
    }
    skipped = {
        name: f"{', '.join(modules)} not installed ({INSTALL})"
        for name, modules in missing.items()
        if modules
    }
    return [name for name in names if name not in skipped], skipped


def write_models(folder: Path, names: list[str], model: Model) -> None:
    """Writes what the peers load: a Hugging Face folder, ONNX plain and fused, exports."""
    model = dataclasses.replace(model, params=jax.device_get(model.params))
    encoder, params = expanded(model.config.encoder, model.params)
    for name in names:
        if name in exports.PACKAGES:
            exports.write_export(folder, name, model)
    if "torch" in names:
        save_weights(folder, DPBertConfig(encoder), params)
    if {"onnxruntime", "openvino"} & set(names):
        import onnx

        from dpbert_jax.export.onnx import dense_onnx

        graph = dense_onnx(encoder, params)
        onnx.save(graph, str(folder / "plain.onnx"))
        if "onnxruntime" in names:
            _fuse(graph, encoder).save_model_to_file(str(folder / "fused.onnx"))


def _fuse(graph: Any, encoder: EncoderConfig) -> Any:
    from onnxruntime.transformers.optimizer import optimize_model

    return optimize_model(
        graph,
        model_type="bert",
        num_heads=encoder.num_attention_heads,
        hidden_size=encoder.hidden_size,
        opt_level=0,
    )


def _load_torch(folder: Path, threads: int) -> Call:
    torch: Any = importlib.import_module("torch")
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    load = AutoModelForSequenceClassification.from_pretrained
    model = load(folder, attn_implementation="sdpa").eval()
    names = read_config(folder).encoder.inputs

    def call(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.int64(batch[name])) for name in names}
            return model(**tensors).logits.numpy()

    return call


def _load_onnxruntime(folder: Path, threads: int) -> Call:
    session = exports.onnx_session(folder / "fused.onnx", threads)
    types = {i.name: np.int32 if "int32" in i.type else np.int64 for i in session.get_inputs()}

    def call(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        return session.run(None, {n: batch[n].astype(kind) for n, kind in types.items()})[0]

    return call


def _load_openvino(folder: Path, threads: int) -> Call:
    openvino: Any = importlib.import_module("openvino")

    core = openvino.Core()
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
    }
    compiled = core.compile_model(core.read_model(folder / "plain.onnx"), "CPU", hints)
    names = [each.any_name for each in compiled.inputs]

    def call(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        return compiled({name: np.int64(batch[name]) for name in names})[0]

    return call


_LOADERS = {
    "torch": _load_torch,
    "torch-training": torch_training.load,
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
    "export-onnx": partial(exports.load_exported_onnx, "export-onnx"),
    "export-int8": partial(exports.load_exported_onnx, "export-int8"),
    "export-torch": exports.load_exported_torch,
}


def _serve(connection: Connection, name: str, folder: Path, threads: int) -> None:
    """The peer's process: answers (batches, repeats) with the last logits and the seconds."""
    try:
        call = _LOADERS[name](folder, threads)
        connection.send("ready")
        while True:
            batches, repeats = connection.recv()
            logits, seconds = [], []
            for _ in range(repeats):
                began = time.perf_counter()
                logits = [call(batch) for batch in batches]
                seconds.append(time.perf_counter() - began)
            connection.send((logits, seconds))
    except EOFError:
        return
    except Exception as error:  # whatever stops a peer is told in the report, and stops no other
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


class Peer:
    """A peer in its process; `close` ends it."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, folder, threads), daemon=True
        )
        self._process.start()
        theirs.close()
        self._receive()

    def run(
        self, batches: list[dict[str, np.ndarray]], repeats: int = 1
    ) -> tuple[list[np.ndarray], list[float]]:
        """The logits of each batch, and the seconds of each pass over all of them."""
        self._connection.send((batches, repeats))
        answer = self._receive()
        time.sleep(SETTLE_SECONDS)
        return answer

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise UserError(f"Peer {self.name} has died.") from None
        if isinstance(answer, Exception):
            raise UserError(f"Peer {self.name} failed: {answer}")
        return answer

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
