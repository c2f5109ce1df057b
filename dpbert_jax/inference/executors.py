"""Executors: four ways to run a plan that agree to rounding and differ in what they compute.

`masked` computes every layer and mixes: the reference. `cond` and `chunked` are one compiled
program (`inference.in_graph`); `packed` schedules from the host (`inference.packed`).
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import INPUTS
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.inference.in_graph import (
    default_chunk_size,
    encode_chunked,
    encode_cond,
    forward,
)
from dpbert_jax.inference.packed import PIECE_TOKENS, Packed
from dpbert_jax.inference.path import Output, TokenOutput, Weights, prepare, stem_of
from dpbert_jax.policies.gates import FREE
from dpbert_jax.policies.protocol import Policy
from dpbert_jax.policies.rule import Rule
from dpbert_jax.policies.tokens import own_policy

logger = logging.getLogger(__name__)

EXECUTORS = ("masked", "cond", "chunked", "packed")
AUTO = "auto"

Run = Callable[[Mapping[str, np.ndarray], Rule, np.ndarray], Output]


@dataclass(frozen=True)
class Executor:
    """A function from a batch and a rule to its output; it compiles once for each batch shape.

    Whatever the plans, budgets and rules: they are values of the compiled programs.
    """

    name: str
    config: DPBertConfig
    policy: Policy
    run: Run
    lower: Callable[..., Any] | None = None  # (batch, rule) -> lowered program; None: not one
    packs: bool = False  # whether it likes many rows at once, of any lengths and in any order

    def cost(
        self, output: Output, rows: np.ndarray, lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        """What some rows of an output cost, a share of the dense FLOPs of rows of these lengths."""
        if isinstance(output, TokenOutput):
            lengths = np.asarray(output.tokens)[rows]
        return self.policy.cost(np.asarray(output.layer_mask)[rows], lengths)

    def __call__(
        self,
        batch: Mapping[str, np.ndarray],
        rule: Rule,
        layer_mask: np.ndarray | None = None,
    ) -> Output:
        """Runs a batch: `input_ids`, `attention_mask`, `token_type_ids`, each int [B, S].

        Args:
            layer_mask: [B, L] of 0 and 1, to run this plan in place of the planner's. The planner
                is run all the same.

        Raises:
            UserError: a batch without rows, inputs of unlike shape, a row whose first token is
                masked, more tokens than the model has positions, an id without an embedding, or a
                plan that is no plan; or what comes out is not finite: no answer is made of it.
        """
        rows = check_batch(self.config, batch)
        if layer_mask is not None and not self.policy.obeys:
            raise UserError(
                "A plan was given, but this policy decides while layers run, and obeys none: leave "
                "it out."
            )
        forced = forced_gates(self.config, stem_of(self.config, self.policy), layer_mask, rows)
        inputs = {name: batch[name] for name in INPUTS}
        output = self.run(inputs, rule, forced)
        indices = batch.get("indices", np.arange(rows))  # of padding -1: no answer is made of it
        wrong = np.flatnonzero(~finite(output) & (indices >= 0))
        if len(wrong):
            # `packed` lays inputs side by side, where NaN spreads: each is asked alone.
            alone = (
                self.run({name: v[[row]] for name, v in inputs.items()}, rule, forced[[row]])
                for row in wrong
            )
            named = zip(wrong, alone, strict=True)
            culprit = next((row for row, answer in named if not finite(answer)[0]), wrong[0])
            raise UserError(
                f"Input {indices[culprit]} (counted from 0) has no answer: the model computes NaN "
                "or infinity for it. Look for such values in its weights, and, where it computes "
                "in bfloat16, try float32."
            )
        return output


def check_batch(config: DPBertConfig, batch: Mapping[str, np.ndarray]) -> int:
    """Refuses what no executor can run; the number of rows."""
    shapes = {name: np.shape(batch[name]) for name in INPUTS}
    shape = shapes["input_ids"]
    if len(shape) != 2 or len(set(shapes.values())) > 1:
        raise UserError(f"A batch's inputs must be of one shape [rows, tokens], but are {shapes}.")
    if 0 in shape:
        raise UserError(
            f"A batch has {shape[0]} rows of {shape[1]} tokens: there is nothing to do."
        )
    if shape[1] > config.encoder.longest_input:
        raise UserError(
            f"A sequence has {shape[1]} tokens, but the model has positions for "
            f"{config.encoder.longest_input}."
        )
    masked = np.flatnonzero(np.asarray(batch["attention_mask"])[:, 0] == 0)
    if len(masked):
        raise UserError(
            f"Row {masked[0]}'s attention_mask begins with 0, but the first token is the one that "
            "is classified: pad on the right."
        )
    embeddings = [("input_ids", config.encoder.vocab_size, "vocab_size")]
    if config.encoder.family.token_types:
        types = config.encoder.type_vocab_size
        embeddings.append(("token_type_ids", types, "type_vocab_size"))
    for name, size, embedding in embeddings:
        ids = np.asarray(batch[name])
        beyond = np.argwhere((ids < 0) | (ids >= size))
        if len(beyond):
            row, token = beyond[0]
            raise UserError(
                f"Row {row} has {ids[row, token]} among its {name}, but the model's {embedding} is "
                f"{size}."
            )
    return shape[0]


def finite(output: Output) -> Bool[np.ndarray, " B"]:
    """Which rows' numbers are ones: argmax and thresholds would make an answer of NaN as well."""
    every = np.concatenate([output.logits, output.gate_logits], axis=1)
    return np.asarray(np.isfinite(every).all(axis=1))


def forced_gates(
    config: DPBertConfig, stem: int, layer_mask: np.ndarray | None, rows: int
) -> np.ndarray:
    """The gates [B, P] of a given plan [B, L]; all left to the policy where there is none."""
    if layer_mask is None:
        return np.full((rows, config.encoder.num_hidden_layers - stem), FREE, np.float32)
    layer_mask = np.asarray(layer_mask, np.float32)
    wanted = (rows, config.encoder.num_hidden_layers)
    if layer_mask.shape != wanted:
        raise UserError(f"The plan has shape {layer_mask.shape}, but [rows, layers] is {wanted}.")
    wrong = np.argwhere((layer_mask != 0) & (layer_mask != 1))
    if len(wrong):
        row, layer = wrong[0]
        raise UserError(
            f"The plan's value for row {row}, layer {layer} is {layer_mask[row, layer]}, but must "
            "be 0 or 1."
        )
    skipped = np.argwhere(layer_mask[:, :stem] == 0)
    if len(skipped):
        row, layer = skipped[0]
        raise UserError(
            f"The plan skips layer {layer} for row {row}, but the first {stem} "
            "layer(s), which the planner reads, always run."
        )
    return layer_mask[:, stem:]


def pick_executor(batch_size: int | None) -> str:
    """What `auto` stands for, by batch size and device, and says so; None is a whole dataset."""
    device = jax.default_backend()
    name = "cond" if batch_size == 1 else "packed" if device == "cpu" else "chunked"
    rows = "a whole dataset" if batch_size is None else f"batch size {batch_size}"
    logger.info("--executor auto is %s, for %s on %s.", name, rows, device)
    return name


def make_executor(
    name: str,
    config: DPBertConfig,
    params: Params | Weights,
    dtype: DTypeLike = jnp.float32,
    *,
    policy: Policy | None = None,
    chunk_size: int | None = None,
) -> Executor:
    """An executor by name; `pick_executor` gives the name for a batch size.

    Args:
        params: the parameters, or, for all but `masked`, what `prepare` made of them: executors
            can then share it.
        policy: who decides which layers run, and on which tokens; default: the model's own.
        chunk_size: rows that `chunked` runs at once; default: by device and sequence length.

    Raises:
        UserError: the name is unknown, or the chunk size is below 1 or of no effect.
    """
    if name not in EXECUTORS:
        raise UserError(f"--executor is '{name}', but must be one of {[AUTO, *EXECUTORS]}.")
    if chunk_size is not None and name != "chunked":
        raise UserError(f"--chunk_size has no effect on the executor '{name}': leave it out.")
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"--chunk_size is {chunk_size}, but must be at least 1.")
    platform, own = jax.default_backend(), policy is None
    policy = policy or own_policy(config)
    if name == "masked":
        forward_masked = _trained_form()
        weights: Any = jax.device_put(params)
        program = jax.jit(partial(forward_masked, config, policy, dtype))
    else:
        weights = params if isinstance(params, Weights) else prepare(config, policy, params, dtype)
        if name == "packed":
            tokens = PIECE_TOKENS.get(platform, PIECE_TOKENS["gpu"])
            packed = Packed(config, policy, weights, dtype, tokens)
            return Executor(name, config, policy, packed, packs=True)

        about = (name, dtype, platform, chunk_size)
        if own:
            program = _shared_program(dataclasses.replace(config, calibration=None), *about)
        else:
            program = in_graph_program(config, policy, *about)

    def run(batch: Mapping[str, np.ndarray], rule: Rule, forced: np.ndarray) -> Output:
        return program(weights, **batch, rule=rule, forced=forced)

    def lower(batch: Mapping[str, np.ndarray], rule: Rule) -> Any:
        stem = stem_of(config, policy)
        forced = forced_gates(config, stem, None, len(batch["input_ids"]))
        inputs = {name: batch[name] for name in INPUTS}
        return program.lower(weights, **inputs, rule=rule, forced=forced)

    return Executor(name, config, policy, run, lower)


def in_graph_program(
    config: DPBertConfig,
    policy: Policy,
    name: str,
    dtype: DTypeLike,
    platform: str,
    chunk_size: int | None,
) -> Any:
    """The compiled program of `cond` or `chunked`: (weights, inputs, rule, forced) -> output."""

    def encode(encoder: Any, layers: Any, states: Any, *about: Any) -> Any:
        if name == "cond":
            return encode_cond(encoder, layers, states, *about)
        rows = chunk_size or default_chunk_size(platform, states.shape[2])
        return encode_chunked(encoder, layers, states, *about, chunk_size=rows)

    return jax.jit(partial(forward, config, policy, dtype, encode))


@lru_cache(maxsize=16)
def _shared_program(config: DPBertConfig, *about: Any) -> Any:
    """`in_graph_program` of models that differ in their weights only, and their own policy."""
    return in_graph_program(config, own_policy(config), *about)


def _trained_form() -> Any:
    """The forward pass of the model that training differentiates, which alone needs Flax."""
    try:
        from dpbert_jax.inference.masked import forward_masked
    except ModuleNotFoundError as error:
        raise UserError(
            f"The executor 'masked' needs {error.name}, not installed: "
            "pip install 'dpbert-jax[train]'."
        ) from error
    return forward_masked
