"""Training of DACT-BERT (`policies.dact` has its formulas, and runs it).

All layers run; the loss is the negative log likelihood of the answer, a mean of all classifiers'
that the halting units weight, plus tau times the sum of the shares p_n, N for a model that never
halts. It starts from the run's dense model and takes the run's steps after it, not distilled.

Ours, since the authors' code for BERT is not to be had: each classifier begins as a copy of the
dense model's head; halting units read the first token and begin at 0.88 for all inputs, so that
the deep classifiers, which are good already, have most of the say; the values of tau.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import INPUTS
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.policies.dact import LEAST, advance
from dpbert_jax.problem import SINGLE_LABEL
from dpbert_jax.run_folder import BASELINES
from dpbert_jax.study.early_exit import EarlyExitBert, initial_params, save_exits
from dpbert_jax.study.fit import Run, fit
from dpbert_jax.training.objective import score_sums
from dpbert_jax.training.step import Moment

HALTING_BIAS = 2.0  # sigmoid: 0.88


def initial_halting(config: DPBertConfig) -> Params:
    """A halting unit behind every layer, which says the same of every input."""
    kernel = np.zeros((config.encoder.hidden_size, 1), np.float32)
    bias = np.full(1, HALTING_BIAS, np.float32)
    layers = range(config.encoder.num_hidden_layers)
    return {f"halt_{i}": {"kernel": kernel, "bias": bias} for i in layers}


def outcome(
    said: Float[Array, "B L C1"],
) -> tuple[Float[Array, "B L C"], Float[Array, "B L"]]:
    """Every a_n and p_n of what `EarlyExitBert` with halting units says."""
    rows, layers, columns = said.shape
    answer, share = jnp.zeros((rows, columns - 1)), jnp.ones(rows)
    answers, shares = [], []
    for n in range(layers):
        answer, share = advance(said[:, n, :-1], said[:, n, -1], answer, share)
        answers.append(answer)
        shares.append(share)
    return jnp.stack(answers, axis=1), jnp.stack(shares, axis=1)


def dact_loss(
    tau: float,
    config: DPBertConfig,
    dtype: DTypeLike,
    params: Params,
    batch: dict[str, Array],
    moment: Moment,
) -> tuple[Array, dict[str, Array]]:
    """One shard's part of the loss, and sums for the log; `layers` is 1 + the sum of p_n."""
    row_keys = moment.row_keys(batch["positions"])
    model: Any = EarlyExitBert(config.encoder, dtype, halts=True)
    said = model.apply({"params": params}, *(batch[name] for name in INPUTS), row_keys)
    answers, shares = outcome(said)
    answer, spent = jnp.log(jnp.maximum(answers[:, -1], LEAST)), shares.sum(axis=1)
    likelihood = jnp.take_along_axis(answer, batch["labels"][:, None], axis=1)[:, 0]
    loss = jnp.sum(batch["weights"] * (tau * spent - likelihood)) / moment.total
    return loss, {
        "loss": loss,
        "rows": batch["weights"].sum(),
        "layers": jnp.sum(batch["weights"] * (1 + spent - shares[:, -1])),
        **score_sums(answer, batch["labels"], batch["weights"], SINGLE_LABEL),
    }


def check_dact(run: Run) -> None:
    """Refuses a run whose task is no single-label classification.

    Raises:
        UserError: it is another.
    """
    problem = run.teacher.config.encoder.problem_type
    if problem != SINGLE_LABEL:
        raise UserError(
            f"--methods dact: {run.folder} is of {problem}, but DACT-BERT decides between classes "
            "of which one is right."
        )


def train_dact(run: Run, tau: float) -> Path:
    """Trains a DACT-BERT; leaves its weights in the run's folder of baselines."""
    config = run.teacher.config
    params = {**initial_params(config, run.teacher.params), **initial_halting(config)}
    loss = partial(dact_loss, tau, config, compute_dtype(run.args.bf16))
    params = fit(run, f"dact {tau:g}", loss, config, params, None)
    return save_exits(run.folder / BASELINES / f"dact_{tau:g}", params)
