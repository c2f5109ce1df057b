"""Executors: three ways to run a plan that agree to rounding and differ in what they compute.

`masked` computes every layer and mixes: the reference. `cond` is one compiled program for all
plans in which a layer that no row of the batch needs does not run.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.errors import UserError
from dpbert_jax.inference.rules import Rule
from dpbert_jax.model.bert import Layer, attention_bias
from dpbert_jax.model.dpbert import DPBert, DPBertOutput, Params
from dpbert_jax.model.gates import hard_gates, layer_mask_of

Encode = Callable[..., Array]
Executor = Callable[[Mapping[str, np.ndarray], Rule], DPBertOutput]


def encode_masked(
    model: DPBert,
    params: Params,
    stem_states: Float[Array, "B S D"],
    attention_mask: Int[Array, "B S"],
    gates: Float[Array, "B P"],
) -> Float[Array, "B S D"]:
    """All planned layers, mixed by the gates."""
    apply: Any = partial(model.apply, {"params": params})
    states = apply(stem_states, attention_mask, gates, method="encode")
    return states[-1] if states else stem_states


def encode_cond(
    model: DPBert,
    params: Params,
    stem_states: Float[Array, "B S D"],
    attention_mask: Int[Array, "B S"],
    gates: Float[Array, "B P"],
) -> Float[Array, "B S D"]:
    """One `lax.cond` a layer: it runs if any row needs it, and rows that do not keep their state.

    At batch 1 that is skipping per input.
    """
    layer = Layer(model.config.bert, model.dtype)
    bias = attention_bias(attention_mask)
    states = stem_states

    def run(states: Array, layer_params: Params, gate: Array) -> Array:
        output: Any = layer.apply({"params": layer_params}, states, bias)
        # A single row that got here needs the layer: nothing to select.
        return output if gate.shape[0] == 1 else jnp.where(gate[:, None, None] > 0, output, states)

    def skip(states: Array, layer_params: Params, gate: Array) -> Array:
        return states

    for i in range(model.config.num_gates):
        layer_params = params[f"layer_{model.config.stem_layers + i}"]
        gate = gates[:, i]
        states = jax.lax.cond((gate > 0).any(), run, skip, states, layer_params, gate)
    return states


EXECUTORS: dict[str, Encode] = {"masked": encode_masked, "cond": encode_cond}


def forward(
    model: DPBert,
    encode: Encode,
    params: Params,
    input_ids: Int[Array, "B S"],
    attention_mask: Int[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
    rule: Rule,
) -> DPBertOutput:
    """The whole path of an input: stem, planner, hard plan, planned layers, head."""
    apply: Any = partial(model.apply, {"params": params})
    states = apply(input_ids, attention_mask, token_type_ids, method="stem")
    budget = jnp.broadcast_to(jnp.float32(rule.budget), states.shape[:1])
    gate_logits = apply(states, attention_mask, budget, method="plan")
    gates = hard_gates(gate_logits, rule.threshold, rule.top_k)
    states = encode(model, params, states, attention_mask, gates)
    _, logits = apply(states, method="pool")
    return DPBertOutput(logits, layer_mask_of(gates, model.config.stem_layers), gate_logits)


def make_executor(
    name: str, config: DPBertConfig, params: Params, dtype: DTypeLike = jnp.float32
) -> Executor:
    """A function from a batch (`input_ids`, `attention_mask`, `token_type_ids`) and a rule to its
    output.

    Compiles once for each shape of a batch, whatever the plans, budgets and rules.

    Raises:
        UserError: the executor's name is unknown.
    """
    if name not in EXECUTORS:
        raise UserError(f"--executor is '{name}', but must be one of {list(EXECUTORS)}.")
    model = DPBert(config, dtype)
    program = jax.jit(partial(forward, model, EXECUTORS[name]))
    params = jax.device_put(params)

    def execute(batch: Mapping[str, np.ndarray], rule: Rule) -> DPBertOutput:
        length = batch["input_ids"].shape[1]
        if length > config.bert.max_position_embeddings:
            raise UserError(
                f"A sequence has {length} tokens, but the model has positions for "
                f"{config.bert.max_position_embeddings}."
            )
        inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        return program(params, *inputs, rule)

    return execute
