"""Every program of a run lowers for a TPU and for CUDA, which takes no such device."""

import dataclasses

import jax
import pytest

from dpbert_jax.benchmark.run_programs import Sizes, run_programs
from dpbert_jax.config import TINY
from dpbert_jax.training.stage import STAGES

SMALL = dataclasses.replace(TINY, num_hidden_layers=3)
PROGRAMS = {each.name: each for each in run_programs(SMALL, Sizes(rows=4, length=16))}


def test_the_list_has_every_stage_and_every_executor():
    for stage in STAGES:
        for what in ("gradients, float32", "gradients, bfloat16", "update"):
            assert f"{stage.name}: {what}" in PROGRAMS
    for name in ("masked", "cond", "chunked", "packed: a layer"):
        assert {f"{name}, float32", f"{name}, bfloat16"} <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_lowers_for_accelerators(name):
    program = PROGRAMS[name]
    function = jax.jit(lambda *args: program.make(jax.devices()[0])(*args))
    traced = function.trace(*program.arguments)
    for platform in ("tpu", "cuda"):
        assert "func.func public @main" in traced.lower(lowering_platforms=(platform,)).as_text()
