"""The format `onnx`: a graph of dynamic depth where there is a planner."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.export.formats import (
    Answer,
    Batch,
    Call,
    ExportOptions,
    Format,
    dense_answer,
    write_beside,
)
from dpbert_jax.model import Model

ARTIFACT = "model.onnx"
WEIGHTS = "model.onnx.data"  # beside it, of an artifact that is to be small in memory
SMALLEST_BESIDE = 1024  # bytes of a tensor


def _write(folder: Path, model: Model, options: ExportOptions) -> None:
    import onnx

    from dpbert_jax.export.onnx import dense_onnx
    from dpbert_jax.export.onnx_planned import planned_onnx

    if model.config.planner:
        written = planned_onnx(model.config, model.params, **options._asdict())
    elif options.int8:
        raise UserError("--int8 is for models with a planner; this one has none.")
    else:
        written = dense_onnx(model.config.encoder, model.params)
    longest = {
        "max_seq_length": model.max_seq_length,
        "max_position_embeddings": model.config.encoder.max_position_embeddings,
    }
    onnx.helper.set_model_props(written, {key: str(number) for key, number in longest.items()})
    write_beside(folder, model)
    if not options.int8_all:
        onnx.save(written, str(folder / ARTIFACT))
        return
    # A runtime maps a file beside the graph; what lies in the graph it reads, and copies.
    onnx.save(
        written,
        str(folder / ARTIFACT),
        save_as_external_data=True,
        location=WEIGHTS,
        size_threshold=SMALLEST_BESIDE,
    )
    shutil.copymode(folder / ARTIFACT, folder / WEIGHTS)  # onnx makes it for the owner only


def _load(folder: Path, model: Model, options: ExportOptions) -> Call:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # it warns of the budget's default, which is meant
    session = onnxruntime.InferenceSession(
        folder / ARTIFACT, quiet, providers=["CPUExecutionProvider"]
    )
    planned, names = model.config.planner is not None, model.config.encoder.inputs
    outputs = ["logits", "layer_mask", *(["tokens"] if model.config.token_selectors else [])]

    def call(batch: Batch, budget: float) -> Answer:
        inputs: dict[str, Any] = {name: np.int64(batch[name]) for name in names}
        if not planned:
            return dense_answer(session.run(["logits"], inputs)[0], model.config)
        inputs["budget"] = np.array(budget, np.float32)
        return tuple(session.run(outputs, inputs))

    return call


def _stored(config: DPBertConfig, params: Params) -> Params:
    from dpbert_jax.export.onnx_quantize import stored_params

    return stored_params(config, params)


FORMAT = Format(
    "onnx",
    _write,
    _load,
    ("onnx",),
    ("onnxruntime",),
    "dpbert-jax[onnx]",
    takes_int8=True,
    chooses_operators=True,
    stored=_stored,
)
