"""Training of TR-BERT's selectors (`policies.tokens` has their form, and runs them).

As published: from the fine-tuned model, first the selectors alone, then together with the backbone,
which is distilled from the fine-tuned one. Which tokens stay is drawn, several times for each text;
a draw's reward is minus its loss minus alpha times the share of tokens that stayed, mean over the
selectors; and selectors follow the policy gradient, with the mean reward of a text's draws as the
baseline. In the first half of either phase's steps one of the draws copies an expert: as many
tokens as the selector would keep on the mean, those of the largest gradients. Beside a planner it
is the run's own model that learns so, under its planner's plans at budgets from its range, and
behind it a dial is found (`study.token_dial`) that splits a budget between layers and tokens. The
rows that run all layers there, a quarter, keep all tokens as well, for the top of that dial.

Ours: the phases have the steps that the run took after its dense model, half each; the expert's
gradients are the loss's at the states before the first selector, of the model as it is then, not
computed beforehand; four draws, where theirs are eight, and the backbone learns from one of them;
selectors begin with a probability of 0.88 for every token and learn at the planner's rate (at the
backbone's they stay where they begin); the backbone learns half from the labels, half from the
teacher, as our own stages do of texts as they are, where theirs learns from the teacher alone;
tokens are masked in training and really dropped after it.
"""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.operations import Params, fold_rows
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.policies.cost import cost_unit
from dpbert_jax.policies.planner import gate_logits
from dpbert_jax.policies.tokens import selector_layers, selector_products, with_selectors
from dpbert_jax.study.fit import Run, fit
from dpbert_jax.study.token_dial import find_dial
from dpbert_jax.study.token_path import (
    answer_with,
    first_states,
    first_stay_logits,
    importance,
    most_important,
)
from dpbert_jax.training.objective import drawn_plans, planned_rows, row_losses, score_sums
from dpbert_jax.training.stage import plan_path
from dpbert_jax.training.step import Moment
from dpbert_jax.training.transfer import as_they_are

DRAWS = 4
STAYING_BIAS = 2.0  # sigmoid: 0.88
SELECTORS, BOTH = "selectors", "both"  # phases
SECOND = 2**29  # the second phase's seeds lie so far off
ALONE, PLANNED = "trbert", "planned_trbert"  # methods


def initial_selectors(config: DPBertConfig, seed: int) -> Params:
    """A selector before each of `selector_layers`, which keeps next to every token."""
    random, stddev = np.random.default_rng(seed), config.encoder.initializer_range

    def product(name: str, inputs: int, outputs: int) -> Params:
        kernel = random.normal(0, stddev, (inputs, outputs)).astype(np.float32)
        bias = STAYING_BIAS if name == "narrow" else 0.0
        return {"kernel": kernel, "bias": np.full(outputs, bias, np.float32)}

    return {
        selector: {name: product(name, *shape) for name, shape in products.items()}
        for selector, products in selector_products(with_selectors(config)).items()
    }


def selection_losses(
    said: Float[Array, "B S"], before: Int[Array, "B S"], after: Int[Array, "B S"]
) -> Float[Array, " B"]:
    """Minus the log likelihood of a draw, mean over the tokens that there were to draw."""
    stayed = (after > 0).astype(jnp.float32)
    likelihood = stayed * jax.nn.log_sigmoid(said) + (1 - stayed) * jax.nn.log_sigmoid(-said)
    asked = before.astype(jnp.float32)
    return -(likelihood * asked).sum(axis=1) / asked.sum(axis=1)


def trbert_loss(
    alpha: float,
    phase: str,
    config: DPBertConfig,
    dtype: DTypeLike,
    params: Params,
    batch: dict[str, Array],
    moment: Moment,
) -> tuple[Array, dict[str, Array]]:
    """One shard's part of the loss, and sums for the log; `layers` counts what tokens are left."""
    problem, mask = config.encoder.problem_type, batch["attention_mask"]
    row_keys = moment.row_keys(batch["positions"])
    # What is frozen has no dropout: the whole of it, or what a plan depends on.
    dropout_keys = row_keys if phase == BOTH else None
    states = first_states(config, dtype, params, batch, None if config.planner else dropout_keys)
    gates = None
    if config.planner:
        said = gate_logits(config, params["planner"], states, mask)
        plans = drawn_plans(config, said, batch["positions"], row_keys, moment.thresholds)
        gates = jnp.pad(plans, ((0, 0), (config.stem_layers, 0)), constant_values=1.0)
    if phase == SELECTORS or config.planner:
        states = jax.lax.stop_gradient(states)
    fixed = jax.lax.stop_gradient((params, states))
    scores = jax.lax.cond(
        moment.progress < 0.5,
        lambda: importance(config, dtype, *fixed, mask, batch["labels"], gates),
        lambda: jnp.zeros(mask.shape),
    )

    def draw(
        learning: Params, number: Array, copies: Array, whole: Array
    ) -> tuple[Array, Array, Array]:
        """A draw's logits, the log likelihood's loss, and the share of tokens that stayed."""
        own = fold_rows(row_keys, 1000 + number)

        def choose(selector: int, said: Array, left: Array) -> Array:
            said = jax.lax.stop_gradient(said)
            each = fold_rows(own, selector)
            drawn = jax.vmap(lambda key, p: jax.random.bernoulli(key, p))(
                each, jax.nn.sigmoid(said)
            )
            count = (jax.nn.sigmoid(said) * left).sum(axis=1)
            return jnp.where(copies, most_important(scores, count, left), drawn) | whole[:, None]

        way = (choose, dropout_keys, gates)
        logits, masks, said = answer_with(config, dtype, learning, states, mask, *way)
        before = [mask, *masks[:-1]]
        each = [selection_losses(*about) for about in zip(said, before, masks, strict=True)]
        stayed = [left.sum(axis=1) / mask.sum(axis=1) for left in masks]
        return logits, sum(each[1:], each[0]), sum(stayed[1:], stayed[0]) / len(stayed)

    numbers = jnp.arange(DRAWS)
    copies = (numbers == 0) & (moment.progress < 0.5)
    selectors = {name: params[name] for name in params if name.startswith("selector_")}
    # Of all draws but the last, which never copies the expert, the selectors alone learn: one
    # backward pass is most of a step, four are not worth their time. So these are one program.
    none = jnp.zeros(mask.shape[0], bool)
    others = jax.vmap(partial(draw, {**fixed[0], **selectors}, whole=none))(
        numbers[:-1], copies[:-1]
    )
    # Rows that run all layers keep all tokens: what a budget of 1 does stays good.
    whole = planned_rows(batch["positions"]) == 0 if phase == BOTH and config.planner else none
    last = draw(params, numbers[-1], copies[-1], whole)
    logits, likelihoods, stayed = (
        jnp.concatenate([each, own[None]]) for each, own in zip(others, last, strict=True)
    )

    def losses(teacher: Array | None) -> Float[Array, "K B"]:
        return jax.vmap(lambda said: row_losses(said, batch["labels"], teacher, problem))(logits)

    rewards = jax.lax.stop_gradient(-losses(None) - alpha * stayed)
    # What was not drawn tells selectors nothing.
    drawn = jnp.ones_like(rewards).at[-1].set(1 - whole)
    mean = (drawn * rewards).sum(axis=0, keepdims=True) / drawn.sum(axis=0, keepdims=True)
    advantage = drawn * (rewards - mean)
    # What the expert keeps may be next to impossible for the selectors: to push it further off has
    # no bottom, and they end at certainties. A copy is followed where it is good.
    advantage = jnp.where(copies[:, None], jnp.maximum(advantage, 0), advantage)
    each = (advantage * likelihoods).mean(axis=0)
    if phase == BOTH:
        each = each + losses(batch["teacher_logits"])[-1]
    loss = jnp.sum(batch["weights"] * each) / moment.total
    layers, first = config.encoder.num_hidden_layers, selector_layers(config)[0]
    after = layers - first if gates is None else gates[:, first:].sum(axis=1)
    spent = first + after * stayed.mean(axis=0)
    return loss, {
        "loss": loss,
        "rows": batch["weights"].sum(),
        "layers": jnp.sum(batch["weights"] * spent),
        **score_sums(logits[-1], batch["labels"], batch["weights"], problem),
    }


def check_trbert(run: Run, planned: bool) -> None:
    """Refuses a run of which tokens cannot be dropped.

    Raises:
        UserError: the model's family, its adapters or its stem allow it not.
    """
    config = (run.model if planned else run.teacher).config
    with_selectors(config)
    first = selector_layers(config)[0]
    if planned and config.stem_layers != first:
        raise UserError(
            f"--methods {PLANNED}: {run.folder} has a stem of {config.stem_layers} layers, but the "
            f"first tokens drop out after {first}."
        )


def train_trbert(run: Run, alpha: float, planned: bool) -> Path:
    """Trains selectors, then both; leaves the weights in the run's folder of baselines.

    Args:
        planned: whether to begin with the run's own model and follow its plans; else with its
            dense model.
    """
    model, dtype = run.model if planned else run.teacher, compute_dtype(run.args.bf16)
    config = model.config
    backbone = jax.tree.map(np.array, dict(model.params))
    params = {**backbone, **initial_selectors(config, run.args.seed)}
    method, half = PLANNED if planned else ALONE, max(run.steps // 2, 1)
    params = fit(
        run,
        f"{method} {alpha:g}, selectors",
        partial(trbert_loss, alpha, SELECTORS, config, dtype),
        config,
        params,
        None,
        num_steps=half,
        frozen=[*backbone],
    )
    params = fit(
        run,
        f"{method} {alpha:g}, both",
        partial(trbert_loss, alpha, BOTH, config, dtype),
        config,
        params,
        as_they_are(run.rows.kept, run.teacher_logits(run.rows.kept)),
        num_steps=half,
        frozen=plan_path(config) if planned else (),
        seed=run.args.seed + SECOND,  # other batches and draws than before
    )
    unit = cost_unit(run.model.config)
    config = dataclasses.replace(with_selectors(config), cost_unit=unit)
    if planned:
        held_out = run.rows.held_out
        made = dataclasses.replace(model, config=config, params=params, dtype=dtype)
        said = first_stay_logits(made, held_out, run.args.per_device_eval_batch_size)
        config = dataclasses.replace(config, calibration=find_dial(run, made, said))
    return run.save_baseline(f"{method}_{alpha:g}", config, params)
