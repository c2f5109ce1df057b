"""Where a benchmark runs, and where its figures go."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dpbert_jax.errors import UserError

VERSIONS = ("jax", "flax", "numpy", "torch", "transformers", "onnx", "onnxruntime", "openvino")


def own_cores() -> int:
    """The cores that this process may use; not every system tells them from the machine's."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """The versions of what is timed, as far as it is installed."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def make_room(flag: str, path: Path) -> None:
    """The folder for a file that is written at the end.

    Raises:
        UserError: the file could not be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--{flag} {path} cannot be written: {error.strerror}.") from error
    if path.is_dir():
        raise UserError(f"--{flag} {path} is a folder: name a file.")
