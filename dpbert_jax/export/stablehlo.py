"""A DPBERT as one StableHLO program: every platform, any batch, weights inside.

The program is called with `jax.export` alone: no code of this library is needed.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array

from dpbert_jax.config import DPBertConfig
from dpbert_jax.encoder.operations import Params
from dpbert_jax.inference.in_graph import encode_cond, forward
from dpbert_jax.inference.path import Output, prepare
from dpbert_jax.policies.gates import FREE
from dpbert_jax.policies.rule import budget_range, resolve_rule, traced_rule
from dpbert_jax.policies.tokens import own_policy

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo_program(
    config: DPBertConfig, params: Params, plan_rule: str = "threshold"
) -> export.Exported:
    """The model with planner and plan rule inside, float32, for CPU, CUDA and TPU.

    Called with the family's inputs (`config.encoder.inputs`), int32 [batch, sequence], in their
    order, and `budget`, a float32 scalar: a share of the dense FLOPs, held to the trained range; 1
    and more runs all layers. More tokens than there are positions for are an error of the call.
    Gives `logits`, `layer_mask` and `gate_logits`, and `tokens`, how many each layer has, of a
    model that drops some. A layer is computed where any row of the batch needs it.

    Raises:
        UserError: the rule needs thresholds that were never found.
    """
    if lowest := budget_range(config):
        resolve_rule(config, lowest[0], plan_rule)  # refuses what cannot be had
    policy = own_policy(config)
    weights = prepare(config, policy, params, jnp.float32)

    names = config.encoder.inputs

    def program(*called: Array) -> dict[str, Array]:
        *arrays, budget = called
        inputs = {
            "token_type_ids": jnp.zeros_like(arrays[0]),
            **dict(zip(names, arrays, strict=True)),
        }
        rule = traced_rule(config, budget, plan_rule)
        forced = jnp.full((arrays[0].shape[0], config.num_gates), FREE)
        run = partial(forward, config, policy, jnp.float32, encode_cond, weights)
        made: Output = run(**inputs, rule=rule, forced=forced)
        return made._asdict()

    # Beyond the positions a lookup would answer NaN, not fail.
    longest = f"sequence <= {config.encoder.longest_input}"
    shape = export.symbolic_shape("batch, sequence", constraints=[longest])
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    budget = jax.ShapeDtypeStruct((), jnp.float32)
    return export.export(jax.jit(program), platforms=PLATFORMS)(*[ids] * len(names), budget)
