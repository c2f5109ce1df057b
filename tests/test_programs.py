"""Programs that were compiled are kept, where the user wants them and not elsewhere."""

import os
import subprocess
import sys

import pytest

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
