"""Compiled programs are kept between processes: compilation is what a newcomer waits for."""

import os
from pathlib import Path
from typing import Any

import jax

FOLDER = "DPBERT_JAX_PROGRAMS"  # where they lie; empty: nowhere
SECONDS = 0.3  # programs that compile faster than this are not worth a file


def keep_programs() -> None:
    """Turns on XLA's persistent cache, in a folder of ours, unless JAX has been told one already.

    Default: ~/.cache/dpbert_jax/programs. What lies there is found by the program's own text, the
    versions of JAX and XLA and the device, and may be deleted at any time.
    """
    config: Any = jax.config  # its settings are made when JAX is imported
    folder = os.environ.get(FOLDER, "~/.cache/dpbert_jax/programs")
    if folder and config.jax_compilation_cache_dir is None:
        config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
