"""The format `stablehlo`: one program for CPU, CUDA and TPU."""

from pathlib import Path

import jax
import numpy as np

from dpbert_jax.export.formats import Answer, Batch, Call, ExportOptions, Format, write_beside
from dpbert_jax.export.stablehlo import stablehlo_program
from dpbert_jax.model import Model

ARTIFACT = "model.stablehlo"


def _write(folder: Path, model: Model, options: ExportOptions) -> None:
    program = stablehlo_program(model.config, model.params, options.plan_rule)
    write_beside(folder, model)
    (folder / ARTIFACT).write_bytes(program.serialize())


def _load(folder: Path, model: Model, options: ExportOptions) -> Call:
    program = jax.export.deserialize(bytearray((folder / ARTIFACT).read_bytes()))
    run = jax.jit(program.call)
    names = model.config.encoder.inputs

    def call(batch: Batch, budget: float) -> Answer:
        made = run(*(np.int32(batch[name]) for name in names), np.float32(budget))
        parts = ("logits", "layer_mask", "tokens")
        return tuple(np.asarray(made[name]) for name in parts if name in made)

    return call


FORMAT = Format(
    "stablehlo", _write, _load, ("flatbuffers",), ("flatbuffers",), "dpbert-jax[stablehlo]"
)
