"""A run in the form that an accelerator gets: how many programs it compiles, and what it learns.

The form is asked for by an argument; it runs here, on a CPU.
"""

import collections

import numpy as np
import pytest
from safetensors.numpy import load_file

from dpbert_jax.programs import compiled_programs
from dpbert_jax.run_folder import read_train_config
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.run import train


@pytest.fixture(scope="module")
def as_on_a_gpu(run_flags, tmp_path_factory):
    """The folder of the tiny run in that form, and what it compiled."""
    folder = tmp_path_factory.mktemp("few") / "run"
    with compiled_programs() as compiled:
        flags = {**run_flags, "masked_share": 0.5}
        train(TrainArguments(output_dir=str(folder), **flags), platform="gpu")
    return folder, compiled


def test_a_cold_run_compiles_eight_programs(as_on_a_gpu):
    """And, besides, single operations of JAX, and what the host's CPU does."""
    _, compiled = as_on_a_gpu
    named = collections.Counter(
        each.name for each in compiled if not each.on_host and not each.is_operation
    )
    assert named == {
        "jit(_fun)": 3,  # as pmap calls the gradients of the three stages
        "jit(update)": 3,
        "jit(forward)": 1,  # teacher, thresholds, scores
        "jit(_run_tree)": 1,  # the tables that the planner is refitted to
    }
    assert sum(each.is_operation for each in compiled) > 0
    assert "jit(descend)" in {each.name for each in compiled if each.on_host}


def test_its_lengths_are_recorded_with_the_run(as_on_a_gpu):
    assert read_train_config(as_on_a_gpu[0])["length_buckets"] == [16]


def test_it_learns_what_the_form_of_a_cpu_learns(steady_flags, trained, tmp_path):
    """To rounding: on the same lengths, since a batch's rows are grouped by them."""
    flags = {**steady_flags, "length_buckets": [16], "num_train_epochs": 1.0, "keep_best": 0.6}
    train(TrainArguments(output_dir=str(tmp_path / "gpu"), **flags), platform="gpu")
    trained(tmp_path / "cpu", flags)
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("gpu", "cpu"))
    assert set(found) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4, err_msg=name)
