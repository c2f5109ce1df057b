"""Programs that were compiled are kept, where the user wants them and not elsewhere."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from dpbert_jax.programs import Ahead, compiled_programs

PROGRAM = """
from dpbert_jax.programs import keep_programs
keep_programs()
import jax
print(jax.config.jax_compilation_cache_dir)
"""


def folder_of_a_process(**environment):
    mine = ("DPBERT_JAX_PROGRAMS", "JAX_COMPILATION_CACHE_DIR")
    clean = {name: value for name, value in os.environ.items() if name not in mine}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "environment, folder",
    [
        ({"HOME": "/home/me"}, "/home/me/.cache/dpbert_jax/programs"),
        ({"DPBERT_JAX_PROGRAMS": "/fast/programs"}, "/fast/programs"),
        ({"DPBERT_JAX_PROGRAMS": ""}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": "/jax/has/one"}, "/jax/has/one"),
    ],
)
def test_the_folder_is_ours_the_users_none_or_jaxs(environment, folder):
    assert folder_of_a_process(**environment) == folder


def test_what_was_begun_ahead_is_not_compiled_again():
    """Other shapes are, when they are called."""

    def tripled(numbers, shift):
        return {"sum": 3 * numbers["a"] + shift}

    ahead, five = Ahead(jax.jit(tripled)), np.arange(5, dtype=np.float32)
    with compiled_programs() as compiled, ThreadPoolExecutor(2) as pool:
        shape = jax.ShapeDtypeStruct(five.shape, five.dtype)
        for _ in range(2):
            ahead.begin(pool, {"a": shape}, np.float32(0))
    assert [each.name for each in compiled] == ["jit(tripled)"]
    with compiled_programs() as compiled:
        found = ahead({"a": five}, np.float32(2))
    assert not compiled
    np.testing.assert_array_equal(found["sum"], 3 * five + 2)
    with compiled_programs() as compiled:
        np.testing.assert_array_equal(ahead({"a": five[:2]}, np.float32(0))["sum"], 3 * five[:2])
    assert "jit(tripled)" in {each.name for each in compiled}
