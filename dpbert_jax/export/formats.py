"""The formats of an export: what each writes, needs, and how its artifact is run."""

import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dpbert_jax.config import DPBertConfig, write_config
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.export.stablehlo import stablehlo_program
from dpbert_jax.export.torch_folder import save_torch_folder
from dpbert_jax.integrity import seal, verify
from dpbert_jax.run_folder import EXPORT_CONFIG

ONNX = "model.onnx"
STABLEHLO = "model.stablehlo"

Batch = Mapping[str, np.ndarray]  # input_ids, attention_mask, token_type_ids: int, [B, S]
Answer = tuple[np.ndarray, np.ndarray]  # logits [B, C] and layer_mask [B, L]
Call = Callable[[Batch, float], Answer]  # an artifact, at a budget


class Model(NamedTuple):
    """What is exported, and how."""

    config: DPBertConfig
    params: Params
    tokenizer: Any
    plan_rule: str
    int8: bool
    max_seq_length: int | None  # that it was trained at; None where the folder does not say


class Format(NamedTuple):
    """A format: the modules that writing and running take, and how to."""

    to_write: tuple[str, ...]
    to_run: tuple[str, ...]
    extra: str  # of this package, that installs them
    write: Callable[[Path, Model], None]
    load: Callable[[Path, Model], Call]

    def require(self, modules: tuple[str, ...], purpose: str) -> None:
        """Refuses where one of the modules is not installed.

        Raises:
            UserError: names them and how to install them.
        """
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"{purpose} needs {', '.join(missing)}, not installed: "
                f"pip install 'dpbert-jax[{self.extra}]'."
            )


def _write_beside(folder: Path, model: Model) -> None:
    """What every server needs beside a graph: planner, thresholds and classes; the tokenizer."""
    model.tokenizer.save_pretrained(str(folder))
    write_config(model.config, folder)


def write_artifact(name: str, folder: Path, model: Model) -> None:
    """Writes a format's artifact, then how it was made, then the checksums of it all."""
    FORMATS[name].write(folder, model)
    made = {
        "format": name,
        "plan_rule": None if name == "huggingface" else model.plan_rule,  # there, of the call
        "int8": model.int8,
        "default_budget": model.config.default_budget,
        "max_seq_length": model.max_seq_length,
        "max_position_embeddings": model.config.encoder.max_position_embeddings,
        "versions": {package: version(package) for package in ("dpbert-jax", "jax")},
    }
    text = json.dumps(made, indent=2)
    (folder / EXPORT_CONFIG).write_text(text + "\n", encoding="utf-8")
    seal(folder)


def load_artifact(name: str, folder: Path, model: Model) -> Call:
    """A format's artifact, as a function; only the very bytes that were written are loaded."""
    verify(folder)
    return FORMATS[name].load(folder, model)


def _write_onnx(folder: Path, model: Model) -> None:
    import onnx

    from dpbert_jax.export.onnx import dense_onnx
    from dpbert_jax.export.onnx_planned import planned_onnx

    if model.config.planner:
        written = planned_onnx(model.config, model.params, model.plan_rule, model.int8)
    elif model.int8:
        raise UserError("--int8 is for models with a planner; this one has none.")
    else:
        written = dense_onnx(model.config.encoder, model.params)
    longest = {
        "max_seq_length": model.max_seq_length,
        "max_position_embeddings": model.config.encoder.max_position_embeddings,
    }
    onnx.helper.set_model_props(written, {k: str(n) for k, n in longest.items() if n})
    _write_beside(folder, model)
    onnx.save(written, str(folder / ONNX))


def _load_onnx(folder: Path, model: Model) -> Call:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    planned, names = model.config.planner is not None, model.config.encoder.inputs

    def call(batch: Batch, budget: float) -> Answer:
        inputs: dict[str, Any] = {name: np.int64(batch[name]) for name in names}
        if not planned:
            return _dense_answer(session.run(["logits"], inputs)[0], model.config)
        inputs["budget"] = np.array(budget, np.float32)
        logits, layer_mask = session.run(["logits", "layer_mask"], inputs)
        return logits, layer_mask

    return call


def _write_huggingface(folder: Path, model: Model) -> None:
    save_torch_folder(folder, model.config, model.params, model.tokenizer)


def _load_huggingface(folder: Path, model: Model) -> Call:
    torch: Any = importlib.import_module("torch")
    from transformers import AutoModelForSequenceClassification

    # This library's own code, just written there.
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    loaded.eval()
    planned, names = model.config.planner is not None, model.config.encoder.inputs

    def call(batch: Batch, budget: float) -> Answer:
        tensors = {name: torch.from_numpy(np.int64(batch[name])) for name in names}
        with torch.inference_mode():
            if not planned:
                return _dense_answer(loaded(**tensors).logits.numpy(), model.config)
            made = loaded(**tensors, budget=budget, plan_rule=model.plan_rule)
        return made.logits.numpy(), made.layer_mask.numpy()

    return call


def _write_stablehlo(folder: Path, model: Model) -> None:
    program = stablehlo_program(model.config, model.params, model.plan_rule)
    _write_beside(folder, model)
    (folder / STABLEHLO).write_bytes(program.serialize())


def _load_stablehlo(folder: Path, model: Model) -> Call:
    program = jax.export.deserialize(bytearray((folder / STABLEHLO).read_bytes()))
    run = jax.jit(program.call)
    names = model.config.encoder.inputs

    def call(batch: Batch, budget: float) -> Answer:
        made = run(*(np.int32(batch[name]) for name in names), np.float32(budget))
        return np.asarray(made["logits"]), np.asarray(made["layer_mask"])

    return call


def _dense_answer(logits: np.ndarray, config: DPBertConfig) -> Answer:
    return logits, np.ones((len(logits), config.encoder.num_hidden_layers))


FORMATS = {
    "huggingface": Format((), ("torch",), "torch", _write_huggingface, _load_huggingface),
    "onnx": Format(("onnx",), ("onnxruntime",), "onnx", _write_onnx, _load_onnx),
    "stablehlo": Format(
        ("flatbuffers",), ("flatbuffers",), "stablehlo", _write_stablehlo, _load_stablehlo
    ),
}
