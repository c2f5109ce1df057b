"""Controls of TR-BERT: as many tokens as its selectors keep of each row, but others.

On the weights that were trained with the selectors: at random, and those of the largest gradients
of a loss whose label is the dense model's answer. The latter needs a backward pass, and could not
be had at inference: it tells how good a selector might be.
"""

from functools import partial
from pathlib import Path
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
from dpbert_jax.policies.tokens import own_policy, selector_layers
from dpbert_jax.problem import answers
from dpbert_jax.run_folder import BASELINES
from dpbert_jax.study.scorer import Point, Scorer
from dpbert_jax.study.sweep_arguments import SweepArguments
from dpbert_jax.study.token_path import answer_with, first_states, importance, most_important
from dpbert_jax.study.trained_points import trained_at
from dpbert_jax.study.trbert import ALONE

RANDOM, IMPORTANCE = f"{ALONE}_random", f"{ALONE}_importance"


def token_points(args: SweepArguments, scorer: Scorer) -> list[Point]:
    """Both controls of every TR-BERT of the run; the random one is a mean over draws."""
    points = []
    for folder in sorted((scorer.run.folder / BASELINES).glob(f"{ALONE}_*")):
        if not args.wanted(ALONE):
            break
        knob = trained_at(folder, ALONE)
        for control, draws in ((RANDOM, args.draws), (IMPORTANCE, 1)):
            seeds = range(args.seed, args.seed + draws)
            made = [selected_otherwise(scorer, folder, control, seed) for seed in seeds]
            points.append({**scorer.point(control, None, made), "trained_at": knob})
    return points


def selected_otherwise(scorer: Scorer, folder: Path, control: str, seed: int) -> Predictions:
    """Answers on tokens selected by a control, and what TR-BERT's own cost."""
    model, split = Model.from_pretrained(folder), scorer.split
    config = model.config
    encoder, first = config.encoder, selector_layers(config)
    program = jax.jit(partial(_answer, config, control))
    said = answers(scorer.dense.logits, encoder.problem_type)
    logits = np.zeros((len(split), encoder.num_labels), np.float32)
    tokens = np.repeat(split.lengths[:, None], encoder.num_hidden_layers, axis=1)
    rows = (scorer.run.args.per_device_eval_batch_size, scorer.run.args.max_seq_length)
    for batch in batches(split, *rows, pad_token_id=encoder.pad_token_id):
        real = batch["weights"] > 0
        numbers = batch["indices"]
        inputs = {name: batch[name] for name in INPUTS}
        found, kept = program(model.params, inputs, said[numbers], numbers, seed)
        logits[numbers[real]] = np.asarray(found)[real]
        for layer, count in zip(first, kept, strict=True):
            tokens[numbers[real], layer:] = np.asarray(count)[real, None]
    plans = np.ones_like(tokens)
    cost = own_policy(config).cost(plans, tokens)
    return Predictions(logits, plans.astype(np.int8), cost.astype(np.float32), 0.0)


def _answer(
    config: DPBertConfig,
    control: str,
    params: Params,
    batch: dict[str, Array],
    labels: Array,
    numbers: Int[Array, " B"],
    seed: Array,
) -> tuple[Float[Array, "B C"], list[Int[Array, " B"]]]:
    """Logits, and the tokens that each selector keeps."""
    mask, dtype = batch["attention_mask"], jnp.float32
    states = first_states(config, dtype, params, batch, None)

    def learned(number: int, said: Array, left: Array) -> Array:
        return said >= 0

    kept = [
        left.sum(axis=1) for left in answer_with(config, dtype, params, states, mask, learned)[1]
    ]
    if control == RANDOM:
        key: Any = jax.random.key(seed)
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
        scores = jax.vmap(lambda key: jax.random.uniform(key, mask.shape[1:]))(keys)
    else:
        scores = importance(config, dtype, params, states, mask, labels)
    scores = scores.at[:, 0].set(jnp.inf)  # the first token is among them in any case

    def chosen(number: int, said: Array, left: Array) -> Array:
        return most_important(scores, kept[number].astype(dtype), left)

    return answer_with(config, dtype, params, states, mask, chosen)[0], kept
