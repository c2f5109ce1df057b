"""A DPBERT as one StableHLO program: every platform, any batch, weights inside.

The program is called with `jax.export` alone: no code of this library is needed.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig
from dpbert_jax.inference.in_graph import encode_cond, forward
from dpbert_jax.inference.path import PLANNED, prepare
from dpbert_jax.policies.dpbert import DPBertOutput, Params
from dpbert_jax.policies.rule import Rule, resolve_rule

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo_program(
    config: DPBertConfig, params: Params, plan_rule: str = "threshold"
) -> export.Exported:
    """The model with planner and plan rule inside, float32, for CPU, CUDA and TPU.

    Called with int32 [batch, sequence] `input_ids`, `attention_mask` and `token_type_ids`, and
    `budget`, a float32 scalar: a share of the dense FLOPs, held to the trained range; 1 and more
    runs all layers. More tokens than `max_position_embeddings` are an error of the call. Gives
    `logits`, `layer_mask` and `gate_logits`. A layer is computed where any
    row of the batch needs it.

    Raises:
        UserError: the rule needs thresholds that were never found.
    """
    if config.planner:
        resolve_rule(config, config.planner.min_budget, plan_rule)  # refuses what cannot be had
    weights = prepare(config, params, jnp.float32)

    def program(
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"],
        token_type_ids: Int[Array, "B S"],
        budget: Float[Array, ""],
    ) -> dict[str, Array]:
        rule = traced_rule(config, budget, plan_rule)
        forced = jnp.full((input_ids.shape[0], config.num_gates), PLANNED)
        run = partial(forward, config, jnp.float32, encode_cond, weights)
        made: DPBertOutput = run(input_ids, attention_mask, token_type_ids, rule, forced)
        return made._asdict()

    # Beyond the positions a lookup would answer NaN, not fail.
    longest = f"sequence <= {config.encoder.max_position_embeddings}"
    shape = export.symbolic_shape("batch, sequence", constraints=[longest])
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    budget = jax.ShapeDtypeStruct((), jnp.float32)
    return export.export(jax.jit(program), platforms=PLATFORMS)(ids, ids, ids, budget)


def traced_rule(config: DPBertConfig, budget: Float[Array, ""], plan_rule: str) -> Rule:
    """`inference.rules.resolve_rule` for a budget that is known only when the program runs."""
    asked: Any = budget
    every = config.num_gates
    if config.planner is None:
        return Rule(asked, -jnp.inf, every)
    full = budget >= 1
    if plan_rule == "top_k":
        inside = jnp.clip(budget, config.planner.min_budget, config.planner.max_budget)
        # The tolerance of inference.rules, widened to what float32 can hold.
        layers = jnp.floor(inside * config.encoder.num_hidden_layers + 1e-5)
        gates: Any = jnp.where(full, every, layers - config.stem_layers)
        return Rule(asked, -jnp.inf, gates)
    assert config.calibration is not None
    grid = (jnp.array(config.calibration.budgets), jnp.array(config.calibration.thresholds))
    threshold: Any = jnp.where(full, -jnp.inf, jnp.interp(budget, *grid))
    return Rule(asked, threshold, every)
