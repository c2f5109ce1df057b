"""Compiled programs: kept between processes, small ones made on the host, all of them counted.

Compilation is what a newcomer waits for, and on an accelerator what a small task mostly consists
of.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


def on_host(platform: str) -> AbstractContextManager[Any]:
    """Where `platform` is an accelerator, what is computed inside is computed by the host's CPU.

    For arithmetic on small arrays: it would take an accelerator longer to compile it than the CPU
    takes to do it. Where JAX was told of no CPU (JAX_PLATFORMS), the accelerator does it.
    """
    if platform == "cpu":
        return nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()


class Ahead:
    """A jitted function whose programs can be compiled by other threads before they are called.

    XLA holds no lock of Python's: while one program computes, others compile.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._programs: dict[Any, Future[Callable[..., Any]]] = {}

    def begin(self, pool: Executor, *arguments: Any) -> None:
        """Begins to compile for arguments of these shapes and types, which lie where these do."""
        known = self._known(arguments)
        if known not in self._programs:
            self._programs[known] = pool.submit(self._compiled, *arguments)

    def __call__(self, *arguments: Any) -> Any:
        begun = self._programs.get(self._known(arguments))
        return (begun.result() if begun else self._function)(*arguments)

    def _compiled(self, *arguments: Any) -> Callable[..., Any]:
        return self._function.lower(*arguments).compile()

    @staticmethod
    def _known(arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        return tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


class Compiled(NamedTuple):
    """A program that was compiled, or taken from the persistent cache."""

    name: str  # of the function
    seconds: float
    on_host: bool  # inside `on_host`

    @property
    def is_operation(self) -> bool:
        """Whether it is one of JAX's own functions, run outside of any program of ours."""
        name = self.name.removeprefix("jit(").removesuffix(")").lstrip("_")
        own = any(hasattr(space, name) for space in (jax.lax, jnp, jax.nn))
        return own or name.startswith("threefry")  # of random keys


@contextmanager
def compiled_programs() -> Iterator[list[Compiled]]:
    """Lists what is compiled inside, in its order."""
    seen: list[Compiled] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            config: Any = jax.config
            on_host = config.jax_default_device is not None
            seen.append(Compiled(str(kwargs.get("fun_name", "")), duration_secs, on_host))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
