"""The StableHLO program answers as this library does, without this library."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.errors import UserError
from dpbert_jax.export.stablehlo import PLATFORMS, stablehlo_program

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def run(call, batch, budget):
    made = call(*(batch[name] for name in NAMES), np.float32(budget))
    return tuple(np.asarray(made[name]) for name in ("logits", "layer_mask", "gate_logits"))


@pytest.mark.parametrize("plan_rule", ["threshold", "top_k"])
def test_program_answers_as_this_library(
    any_config, plan_rule, random_params, random_batch, reference, budgets
):
    params = random_params(any_config)
    written = stablehlo_program(any_config, params, plan_rule).serialize()
    program = jax.export.deserialize(bytearray(written))
    assert program.platforms == PLATFORMS
    call = jax.jit(program.call)
    for rows, length in ((1, 5), (6, 11)):
        batch = random_batch(rows, length)
        for budget in budgets(any_config):
            found = run(call, batch, budget)
            wanted = reference(any_config, params, batch, budget, plan_rule)
            np.testing.assert_array_equal(found[1], wanted[1])
            np.testing.assert_allclose(found[0], wanted[0], atol=2e-5)
            np.testing.assert_allclose(found[2], wanted[2], atol=1e-5)


def test_layers_that_no_row_needs_are_not_computed(
    planned_config, random_params, random_batch, spoil_unneeded
):
    params, batch = random_params(planned_config), random_batch(1)
    clean = run(stablehlo_program(planned_config, params, "top_k").call, batch, 0.6)
    spoilt = spoil_unneeded(planned_config, params, clean[1])
    program = stablehlo_program(planned_config, spoilt, "top_k")
    np.testing.assert_array_equal(run(program.call, batch, 0.6)[0], clean[0])
    # One branch a planned layer is left when it is compiled: nothing became a select.
    arguments = (*(batch[name] for name in NAMES), np.float32(0.6))
    compiled = jax.jit(program.call).lower(*arguments).compile().as_text()
    assert compiled.count(" conditional(") == planned_config.num_gates


def test_dense_model_is_a_program_too(random_params, random_batch, reference):
    config = DPBertConfig(TINY)
    params, batch = random_params(config), random_batch(3)
    found = run(stablehlo_program(config, params).call, batch, 1.0)
    np.testing.assert_allclose(found[0], reference(config, params, batch, 1.0)[0], atol=2e-5)


def test_the_artifact_needs_no_code_of_this_library(
    planned_config, random_params, random_batch, reference, tmp_path
):
    params, batch = random_params(planned_config), random_batch(2)
    path = tmp_path / "model.stablehlo"
    path.write_bytes(stablehlo_program(planned_config, params).serialize())
    np.savez(tmp_path / "batch.npz", **batch)
    code = f"""
import sys, numpy as np, jax
sys.modules["dpbert_jax"] = None  # importing it fails
program = jax.export.deserialize(bytearray(open({str(path)!r}, "rb").read()))
batch = np.load({str(tmp_path / "batch.npz")!r})
made = program.call(*(batch[name] for name in {NAMES}), np.float32(0.7))
np.save({str(tmp_path / "logits.npy")!r}, made["logits"])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    wanted = reference(planned_config, params, batch, 0.7)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), wanted[0], atol=2e-5)


def test_more_tokens_than_positions_are_refused(planned_config, random_params, random_batch):
    longest = planned_config.encoder.max_position_embeddings
    program = stablehlo_program(planned_config, random_params(planned_config))
    program = jax.export.deserialize(bytearray(program.serialize()))
    for call in (program.call, jax.jit(program.call)):
        assert np.isfinite(run(call, random_batch(2, longest), 0.7)[0]).all()
        with pytest.raises(ValueError) as refused:
            run(call, random_batch(2, longest + 1), 0.7)
        assert f"constraint sequence <= {longest}." in str(refused.value.__cause__)


def test_missing_thresholds_are_refused(planned_config, random_params):
    config = dataclasses.replace(planned_config, calibration=None)
    with pytest.raises(UserError, match="no thresholds"):
        stablehlo_program(config, random_params(config))
