"""Controls of TR-BERT: as many tokens as its selectors keep of each row, but others.

On the weights that were trained with the selectors, and the layers of the same plans: at random,
and those of the largest gradients of a loss whose label is the dense model's answer. The latter
needs a backward pass, and could not be had at inference: it tells how good a selector might be.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import INPUTS, batches
from dpbert_jax.encoder.operations import Params
from dpbert_jax.evaluation.evaluate import Predictions
from dpbert_jax.model import Model
from dpbert_jax.policies.gates import hard_gates
from dpbert_jax.policies.planner import gate_logits
from dpbert_jax.policies.rule import Rule, resolve_rule
from dpbert_jax.policies.tokens import own_policy, selector_layers
from dpbert_jax.problem import answers
from dpbert_jax.run_folder import BASELINES
from dpbert_jax.study.scorer import Point, Scorer
from dpbert_jax.study.sweep_arguments import SweepArguments
from dpbert_jax.study.token_path import answer_with, first_states, importance, most_important
from dpbert_jax.study.trained_points import rules_at_cost, trained_at
from dpbert_jax.study.trbert import ALONE, PLANNED

RANDOM, IMPORTANCE = "random", "importance"


def token_points(
    args: SweepArguments, scorer: Scorer, planned: dict[float, Predictions]
) -> list[Point]:
    """Both controls of every TR-BERT of the run; the random one is a mean over draws.

    Alone it has one cost, under a planner those of the planned points.
    """
    points = []
    for method in (ALONE, PLANNED):
        for folder in sorted((scorer.run.folder / BASELINES).glob(f"{method}_*")):
            if not args.wanted(method):
                break
            model, knob = Model.from_pretrained(folder), trained_at(folder, method)
            rules: dict[float | None, Rule] = {None: resolve_rule(model.config, 1.0)}
            if method == PLANNED:
                found = rules_at_cost(scorer, folder, model, planned)
                # At all of the budget no token drops out.
                rules = {budget: rule for budget, rule in found.items() if rule.budget < 1}
            for control, draws in ((RANDOM, args.draws), (IMPORTANCE, 1)):
                seeds = range(args.seed, args.seed + draws)
                # One program for all budgets and draws.
                program = jax.jit(partial(_answer, model.config, control))
                for budget, rule in rules.items():
                    made = [_selected(scorer, model, program, seed, rule) for seed in seeds]
                    point = scorer.point(f"{method}_{control}", budget, made)
                    points.append({**point, "trained_at": knob})
    return points


def _selected(
    scorer: Scorer, model: Model, program: Callable[..., Any], seed: int, rule: Rule
) -> Predictions:
    """Answers on tokens that a control selects, by its program, and what TR-BERT's own cost."""
    config, split = model.config, scorer.split
    encoder, first = config.encoder, selector_layers(config)
    said = answers(scorer.dense.logits, encoder.problem_type)
    logits = np.zeros((len(split), encoder.num_labels), np.float32)
    plans = np.ones((len(split), encoder.num_hidden_layers), np.int8)
    tokens = np.repeat(split.lengths[:, None], encoder.num_hidden_layers, axis=1)
    rows = (scorer.run.args.per_device_eval_batch_size, scorer.run.args.max_seq_length)
    for batch in batches(split, *rows, pad_token_id=encoder.pad_token_id):
        real = batch["weights"] > 0
        numbers = batch["indices"]
        inputs = {name: batch[name] for name in INPUTS}
        found, gates, kept = program(model.params, inputs, said[numbers], numbers, seed, rule)
        logits[numbers[real]] = np.asarray(found)[real]
        plans[numbers[real]] = np.asarray(gates)[real]
        for layer, count in zip(first, kept, strict=True):
            tokens[numbers[real], layer:] = np.asarray(count)[real, None]
    cost = own_policy(config).cost(plans.astype(np.float32), tokens)
    return Predictions(logits, plans, cost.astype(np.float32), 0.0)


def _answer(
    config: DPBertConfig,
    control: str,
    params: Params,
    batch: dict[str, Array],
    labels: Array,
    numbers: Int[Array, " B"],
    seed: Array,
    rule: Rule,
) -> tuple[Float[Array, "B C"], Float[Array, "B L"], list[Int[Array, " B"]]]:
    """Logits, layers that run, and the tokens that each selector keeps."""
    mask, dtype = batch["attention_mask"], jnp.float32
    states = first_states(config, dtype, params, batch, None)
    gates = jnp.ones((len(mask), config.encoder.num_hidden_layers))
    if config.planner:
        layers = gate_logits(config, params["planner"], states, mask)
        plans = hard_gates(layers, rule.threshold, rule.top_k, config.min_gates)
        gates = gates.at[:, config.stem_layers :].set(plans)

    def learned(number: int, said: Array, left: Array) -> Array:
        return said >= rule.stay

    own = answer_with(config, dtype, params, states, mask, learned, None, gates)[1]
    kept = [left.sum(axis=1) for left in own]
    if control == RANDOM:
        key: Any = jax.random.key(seed)
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
        scores = jax.vmap(lambda key: jax.random.uniform(key, mask.shape[1:]))(keys)
    else:
        scores = importance(config, dtype, params, states, mask, labels, gates)
    scores = scores.at[:, 0].set(jnp.inf)  # the first token is among them in any case

    def chosen(number: int, said: Array, left: Array) -> Array:
        return most_important(scores, kept[number].astype(dtype), left)

    about = (states, mask, chosen, None, gates)
    return answer_with(config, dtype, params, *about)[0], gates, kept
