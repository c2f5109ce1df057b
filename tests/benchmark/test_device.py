"""What is prepared for a card, at tiny sizes on a CPU, so that no card sees its first run.

No time is judged.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import dpbert_jax.benchmark
from dpbert_jax.benchmark.accelerator_check import CheckArguments, kernels
from dpbert_jax.benchmark.device_step import STEPS, StepArguments, run_step
from dpbert_jax.benchmark.device_variants import attentions, decided_program, dense_program
from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.errors import UserError
from dpbert_jax.inference import Rule, make_executor
from dpbert_jax.inference.executors import forced_gates
from dpbert_jax.inference.path import prepare
from dpbert_jax.policies.protocol import Planned

SCRIPT = Path(dpbert_jax.benchmark.__file__).parent / "device.sh"
CONFIG = DPBertConfig(TINY, PlannerConfig())
ALL = {"machine", "torch", "gates", "launches", "batch_1_bf16", "batch_1_float32", "batches_bf16"}
TRAINED = {f"train_{name}" for name in ("bf16_cold", "bf16_warm", "float32_cold", "checkpointing")}


def flags(run, step):
    sizes = {"batch_sizes": [2], "length": 8, "keep": [3, 1], "repeats": 1}
    return StepArguments(step, model_name_or_path=str(run), **sizes)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_measures_every_variant(step, tiny_run):
    rows = run_step(flags(tiny_run, step))["rows"]
    assert rows and not any("failed" in row for row in rows)
    if step in ("chunks", "gates"):
        assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
        assert {row["variant"][-8:] for row in rows} == {"3 layers", "1 layers"}
    if step == "attention":
        assert len({row["variant"] for row in rows}) == 2  # cuDNN's is a GPU's


def test_what_is_refused():
    with pytest.raises(UserError, match="--step dance: must be one of machine, chunks"):
        StepArguments("dance")
    with pytest.raises(UserError, match="must be at least 1"):
        StepArguments(keep=[0])
    with pytest.raises(UserError, match="--devices h200: must be of"):
        CheckArguments(devices=["h200"])


@pytest.mark.parametrize("rows", [1, 3])
def test_layers_decided_at_once_are_the_layers_of_cond(rows, random_params, random_batch):
    params, batch = random_params(CONFIG), random_batch(rows)
    rule, forced = Rule(0.6, 0.0, CONFIG.num_gates), forced_gates(CONFIG, 1, None, rows)
    weights = prepare(CONFIG, Planned(CONFIG), params, jnp.float32)
    found = decided_program(CONFIG, jnp.float32)(weights, **batch, rule=rule, forced=forced)
    wanted = make_executor("cond", CONFIG, params)(batch, rule)
    np.testing.assert_array_equal(found.layer_mask, wanted.layer_mask)
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.2)])
def test_every_attention_gives_the_same_states(dtype, tolerance, random_params, random_batch):
    weights = prepare(CONFIG, Planned(CONFIG), random_params(CONFIG), dtype)
    batch = random_batch(3)  # rows of different lengths
    asked = partial(np.testing.assert_allclose, atol=tolerance)
    states = [
        np.asarray(dense_program(CONFIG, dtype, attend)(weights, **batch), np.float32)
        for attend in attentions("cpu", dtype).values()
    ]
    asked(*states)
    assert "dot_product_attention, cudnn" in attentions("gpu", jnp.bfloat16)


def test_kernels_are_counted_where_they_are_called():
    text = "%a = f32[2] fusion(%b), kind=kLoop, calls=%fusion\n%c = (f32[2]) custom-call(%a)"
    assert kernels(text) == {"fusions": 1, "library_calls": 1}


@pytest.mark.slow
def test_the_script_runs_and_goes_on_where_it_stopped(tiny_run, run_flags, tmp_path):
    files = " ".join(f"--{name} {run_flags[name]}" for name in ("train_file", "validation_file"))
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "MODEL": str(run_flags["model_name_or_path"]),
        "BIG": str(tiny_run),
        "TRAIN": f"{files} --max_seq_length 16 --num_train_epochs 1 --num_planner_epochs 1",
        "DATA": str(tmp_path),
        "KEEP": "3 1",
        "BATCHES": "2",
        "LENGTH": "8",
        "REPEATS": "1",
        "DEVICE_SECONDS": "3000",
    }
    command = ["bash", str(SCRIPT), str(tmp_path / "out")]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    written = {path.stem: path for path in (tmp_path / "out").glob("*.json")}
    assert set(written) >= ALL | TRAINED, first.stdout
    assert "FAILED" not in first.stdout
    cold, warm = (
        json.loads(written[f"train_bf16_{name}"].read_text()) for name in ("cold", "warm")
    )
    assert cold["bf16"] and warm["from_the_persistent_cache"] > 0
    assert cold["estimated_bytes"] > 0 and cold["last_lines"]
    written["machine"].unlink()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [line.partition(":")[0] for line in again.stdout.splitlines()] == ["machine"]
