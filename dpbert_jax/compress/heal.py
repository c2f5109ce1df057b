"""A short distillation after the word table was factorised: the model learns to live with it.

The factors are trained in float32 and rounded to int8 on the way in, with gradients passed straight
through: what is trained is what will be looked up.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dpbert_jax.compress.factorise import Factors
from dpbert_jax.data import num_batches
from dpbert_jax.encoder.operations import Params, fold_rows
from dpbert_jax.encoder.word_table import LEVELS
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.policies.adapted import adapter_slots
from dpbert_jax.policies.dpbert import DPBert
from dpbert_jax.study.fit import Run, fit
from dpbert_jax.training.asking import asking, teacher_logits
from dpbert_jax.training.objective import Forward, drawn_plans, stage_loss
from dpbert_jax.training.step import Moment
from dpbert_jax.training.transfer import as_they_are

FACTORS = "word_factors"  # among the parameters while they are trained


def heal(run: Run, factors: Factors, epochs: float) -> tuple[Params, Factors]:
    """Trains all but the planner for so many epochs of the run's rows.

    Learns from the labels and from what the uncompressed model says with all layers, a quarter of
    the rows on all layers and the others on plans at budgets of their own.

    Returns:
        The parameters, the word table still the old one, and the factors.
    """
    how = asking(jax.default_backend(), run.args)
    model = DPBert(run.model.config, compute_dtype(run.args.bf16))
    loss = partial(_loss, model, jnp.asarray(factors.place))
    embeddings = {k: v for k, v in run.model.params["embeddings"].items() if k != "word_embeddings"}
    params = {**run.model.params, "embeddings": embeddings, FACTORS: factors.leaves()}
    trained = fit(
        run,
        "heal",
        loss,
        run.model.config,
        params,
        as_they_are(run.rows.kept, teacher_logits(run.model, run.rows.kept, how)),
        num_steps=math.ceil(epochs * num_batches(len(run.rows.kept), run.batch_size)),
        frozen=("planner",),
    )
    clusters = [trained[FACTORS][name] for name in factors.leaves()]
    healed = factors._replace(
        rows=tuple(np.asarray(cluster["rows"]) for cluster in clusters),
        bases=tuple(np.asarray(cluster["basis"]) for cluster in clusters),
    )
    words = run.model.params["embeddings"]["word_embeddings"]
    embeddings = {**trained["embeddings"], "word_embeddings": words}
    kept = {name: part for name, part in trained.items() if name != FACTORS}
    return {**kept, "embeddings": embeddings}, healed


def _loss(model: DPBert, place: Array, params: Params, *about: Any) -> Any:
    """The loss of a model whose word table is the product of the factors."""
    products = [
        straight_through(factors["rows"]) @ straight_through(factors["basis"])
        for factors in params[FACTORS].values()
    ]
    table = jnp.take(jnp.concatenate(products), place, axis=0)
    embeddings = {**params["embeddings"], "word_embeddings": {"embedding": table}}
    whole = {name: part for name, part in params.items() if name != FACTORS}
    whole["embeddings"] = embeddings
    return stage_loss(heal_forward, model, whole, *about)


def straight_through(values: Float[Array, "N M"]) -> Float[Array, "N M"]:
    """As int8 would hold it, each row with a scale of its own; the gradient is that of no rounding.

    Bengio et al., 1308.3432.
    """
    scale = jnp.abs(values).max(axis=1, keepdims=True) / LEVELS
    scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
    return values + jax.lax.stop_gradient(jnp.round(values / scale) * scale - values)


def heal_forward(
    model: DPBert,
    params: Params,
    batch: dict[str, Array],
    row_keys: Key[Array, " B"],
    moment: Moment,
) -> Forward:
    """The hard plans of inference at budgets from the trained range, evenly drawn.

    As the training stage `final` has them, but that embeddings and stem learn too; without dropout
    there, so that plans are those of inference.
    """
    keys = fold_rows(row_keys, 0)
    apply: Any = partial(model.apply, {"params": params})
    mask, config = batch["attention_mask"], model.config
    states = apply(batch["input_ids"], mask, batch["token_type_ids"], method="stem")
    look = apply(states, mask, method="look")
    positions, thresholds = batch["positions"], moment.thresholds
    gates = drawn_plans(config, look, positions, row_keys, thresholds, power=1)
    adapters = params.get("adapters")
    states = apply(states, mask, gates, keys, adapters, method="encode")[-1]
    _, logits = apply(states, keys, adapters, adapter_slots(config, gates), method="pool")
    return Forward(logits, gates)
