"""What is measured: the model, its batches, its plans."""

import dataclasses
from typing import NamedTuple

import numpy as np

from dpbert_jax.benchmark.arguments import BenchmarkArguments
from dpbert_jax.config import BERT_BASE, DPBertConfig, EncoderConfig, PlannerConfig
from dpbert_jax.encoder.word_table import expanded
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.inference import Rule
from dpbert_jax.model import Model
from dpbert_jax.policies.dpbert import init_params

SHAPES = {
    "bert-base": BERT_BASE,
    "minilm-shape": dataclasses.replace(
        BERT_BASE, hidden_size=384, num_hidden_layers=6, intermediate_size=1536
    ),
}
Batch = dict[str, np.ndarray]


class Subject(NamedTuple):
    """A model with a planner; `random_plans` tells whose plans are run."""

    model: Model  # without a tokenizer where the weights are random
    random_plans: bool
    keeps: list[int]  # layers that a row runs, one after the other

    @property
    def layers(self) -> int:
        return self.model.config.encoder.num_hidden_layers

    def rule(self, keep: int) -> Rule:
        """The planner's own plans of `keep` layers."""
        return Rule(keep / self.layers, -np.inf, keep - self.model.config.stem_layers)

    def plan(self, rows: int, keep: int, seed: int) -> np.ndarray | None:
        """An independent plan of `keep` layers for each row, [B, L]; None: the planner's own."""
        if not self.random_plans:
            return None
        stem, random = self.model.config.stem_layers, np.random.default_rng([seed, keep])
        order = random.random((rows, self.layers - stem)).argsort(axis=1).argsort(axis=1)
        return np.concatenate([np.ones((rows, stem)), order < keep - stem], axis=1)


def load_subject(args: BenchmarkArguments) -> Subject:
    """The model that the flags name, checked against what they ask of it."""
    if args.model_name_or_path in SHAPES:
        config = DPBertConfig(SHAPES[args.model_name_or_path], PlannerConfig())
        longest = config.encoder.longest_input
        model = Model(config, init_params(config, args.seed), None, longest)
        random_plans = args.plans != "planner"
    else:
        model = Model.from_pretrained(args.model_name_or_path)
        if model.config.planner is None:
            raise UserError(f"{args.model_name_or_path} has no planner: there is nothing to skip.")
        if model.config.token_selectors:
            raise UserError(
                f"{args.model_name_or_path} drops tokens, which depends on the texts, and random "
                "ones are timed here: `dpbert sweep` times it on its data."
            )
        random_plans = args.plans == "random"
    layers, stem = model.config.encoder.num_hidden_layers, model.config.stem_layers
    if args.keep is None:
        quarters = {max(layers * part // 4, stem, 1) for part in (1, 2, 3, 4)}
        keeps = sorted(quarters, reverse=True)
    else:
        keeps = args.keep
    for keep in keeps:
        if not stem <= keep <= layers:
            raise UserError(f"--keep {keep}: this model runs {stem} (its stem) to {layers} layers.")
    model = dataclasses.replace(model, dtype=compute_dtype(args.bf16))
    return Subject(model, random_plans, keeps)


def random_batch(config: EncoderConfig, rows: int, length: int, seed: int) -> Batch:
    """Full rows of random token ids."""
    ids = np.random.default_rng([seed, rows, length]).integers(1, config.vocab_size, (rows, length))
    ones = np.ones((rows, length), np.int32)
    return {
        "input_ids": ids.astype(np.int32),
        "attention_mask": ones,
        "token_type_ids": np.zeros_like(ones),
    }


def subset(model: Model, layers: int) -> Model:
    """A dense model of the first `layers` layers alone: what ideal skipping would compile to."""
    plain, every = expanded(model.config.encoder, model.params)
    encoder = dataclasses.replace(plain, num_hidden_layers=layers)
    kept = {f"layer_{i}" for i in range(layers)} | {"embeddings", "head"}
    params = {name: part for name, part in every.items() if name in kept}
    return dataclasses.replace(model, config=DPBertConfig(encoder), params=params, folder=None)
