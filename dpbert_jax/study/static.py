"""A static model of k layers, fine-tuned as such: the same plan for every input, built in.

The strongest of simple baselines (Sajjad et al., 2004.03844, drop layers of a pretrained model and
fine-tune what is left). Here it starts from the run's own teacher, distils from it, takes as many
steps as the run did after the teacher, and runs the k layers that do best on held-out rows.
"""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.attention import RELATIVE
from dpbert_jax.encoder.operations import Params
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.policies.dpbert import DPBert
from dpbert_jax.run_folder import BASELINES
from dpbert_jax.study.fit import Run, fit
from dpbert_jax.training.objective import dense_forward, stage_loss

STATIC = "static"  # method, and what its folders' names begin with


def keep_layers(
    config: DPBertConfig, params: Params, layers: list[int]
) -> tuple[DPBertConfig, Params]:
    """A dense model of these layers alone, renumbered from 0."""
    encoder = dataclasses.replace(config.encoder, num_hidden_layers=len(layers))
    shared = ("embeddings", "head", RELATIVE)
    kept = {name: params[name] for name in shared if name in params}
    for number, layer in enumerate(layers):
        kept[f"layer_{number}"] = params[f"layer_{layer}"]
    return DPBertConfig(encoder), kept


def static_folders(run_folder: Path) -> list[Path]:
    """Of the static models that the run has."""
    return sorted((run_folder / BASELINES).glob(f"{STATIC}_*"))


def train_static(run: Run, layer_mask: np.ndarray) -> Path:
    """Fine-tunes the static model of a plan [L]; leaves a plain Hugging Face BERT of k layers."""
    layers = np.flatnonzero(layer_mask).tolist()
    config, params = keep_layers(run.teacher.config, run.teacher.params, layers)
    model = DPBert(config, compute_dtype(run.args.bf16))
    loss = partial(stage_loss, dense_forward, model)
    name = f"static {'.'.join(map(str, layers))}"
    params = fit(run, name, loss, config, params, run.transfer())
    return run.save_baseline(f"{STATIC}_{len(layers)}", config, params)
