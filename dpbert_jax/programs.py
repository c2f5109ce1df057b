"""Compiled programs are kept between processes: compilation is what a newcomer waits for."""

import os
from pathlib import Path

import jax

FOLDER = "DPBERT_JAX_PROGRAMS"  # where they lie; empty: nowhere
SECONDS = 0.3  # programs that compile faster than this are not worth a file


def keep_programs() -> None:
    """Turns on XLA's persistent cache, in a folder of ours, unless JAX has been told one already.

    Default: ~/.cache/dpbert_jax/programs. What lies there is found by the program's own text, the
    versions of JAX and XLA and the device, and may be deleted at any time.
    """
    folder = os.environ.get(FOLDER, "~/.cache/dpbert_jax/programs")
    if folder and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
