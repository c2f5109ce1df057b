"""Training of SmartBERT's gates (`policies.smartbert` has their form, and runs them).

Gates and backbone are trained together from the run's dense model, with the run's steps after it,
not distilled: the task's loss, plus a weight times the sum of the layers' probabilities of running.
A gate is 0 or 1 as it will be at inference, without noise, and passes its gradient to the
probability (straight-through). Ours: the weights, and that every gate begins with a probability of
0.88 of running, so that the first steps skip next to nothing.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import INPUTS
from dpbert_jax.encoder.attention import RELATIVE, score_bias
from dpbert_jax.encoder.embeddings import embed
from dpbert_jax.encoder.head import classify
from dpbert_jax.encoder.modules import Layer
from dpbert_jax.encoder.operations import DropoutKeys, Params, fold_rows
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.policies.gates import straight_through_gates
from dpbert_jax.policies.smartbert import gate_products, run_logits
from dpbert_jax.run_folder import BASELINES
from dpbert_jax.study.early_exit import save_exits
from dpbert_jax.study.fit import Run, fit
from dpbert_jax.training.objective import row_losses, score_sums
from dpbert_jax.training.step import Moment

RUNNING_BIAS = 2.0  # sigmoid: 0.88


def initial_gates(config: DPBertConfig, seed: int) -> Params:
    """A gate before every layer."""
    random = np.random.default_rng(seed)
    encoder = config.encoder

    def gate() -> Params:
        parts = {}
        for name, (inputs, outputs) in gate_products(encoder.hidden_size).items():
            kernel = random.normal(0, encoder.initializer_range, (inputs, outputs))
            bias = np.full(outputs, RUNNING_BIAS if name == "gate" else 0.0, np.float32)
            parts[name] = {"kernel": kernel.astype(np.float32), "bias": bias}
        return parts

    return {f"gate_{i}": gate() for i in range(encoder.num_hidden_layers)}


def gated_forward(
    config: DPBertConfig,
    dtype: DTypeLike,
    params: Params,
    batch: dict[str, Array],
    dropout_keys: DropoutKeys,
) -> tuple[Float[Array, "B C"], Float[Array, "B L"]]:
    """Logits, and gate logits; each layer computed, and mixed by its gate."""
    encoder = config.encoder
    ids, mask, types = (batch[name] for name in INPUTS)
    keys = [fold_rows(dropout_keys, i) for i in range(encoder.num_hidden_layers + 2)]
    states = embed(encoder, params["embeddings"], ids, types, dtype, dropout_keys=keys[0])
    bias = score_bias(encoder, params.get(RELATIVE, {}), mask)
    layer: Any = Layer(encoder, dtype)
    logits = []
    for i in range(encoder.num_hidden_layers):
        logits.append(run_logits(params[f"gate_{i}"], states, mask, dtype)[:, None])
        gate = straight_through_gates(logits[-1], jnp.zeros_like(logits[-1]), 1.0)
        gate = gate.astype(states.dtype)[:, :, None]
        output = layer.apply({"params": params[f"layer_{i}"]}, states, bias, keys[1 + i])
        states = gate * output + (1 - gate) * states
    answer = classify(encoder, params["head"], states[:, 0], dtype, keys[-1])[1]
    return answer, jnp.concatenate(logits, axis=1)


def gate_loss(
    penalty: float,
    config: DPBertConfig,
    dtype: DTypeLike,
    params: Params,
    batch: dict[str, Array],
    moment: Moment,
) -> tuple[Array, dict[str, Array]]:
    """One shard's part of the loss, and sums for the log."""
    row_keys = moment.row_keys(batch["positions"])
    problem = config.encoder.problem_type
    answer, logits = gated_forward(config, dtype, params, batch, row_keys)
    running = jax.nn.sigmoid(logits).sum(axis=1)
    each = row_losses(answer, batch["labels"], None, problem) + penalty * running
    loss = jnp.sum(batch["weights"] * each) / moment.total
    return loss, {
        "loss": loss,
        "rows": batch["weights"].sum(),
        "layers": jnp.sum(batch["weights"][:, None] * (logits > 0)),
        **score_sums(answer, batch["labels"], batch["weights"], problem),
    }


def train_smartbert(run: Run, penalty: float) -> Path:
    """Trains backbone and gates; leaves their weights in the run's folder of baselines."""
    config = run.teacher.config
    params = jax.tree.map(np.array, dict(run.teacher.params))
    params = {**params, **initial_gates(config, run.args.seed)}
    loss = partial(gate_loss, penalty, config, compute_dtype(run.args.bf16))
    params = fit(run, f"smartbert {penalty:g}", loss, config, params, None)
    return save_exits(run.folder / BASELINES / f"smartbert_{penalty:g}", params)
