"""Several processes as one run: who writes, who waits, and how values travel between them.

With one process each function here is the plain thing that it stands for. With several, all of them
must make the same calls in the same order: what one of them computes alone is lost, and what one of
them waits for alone never comes.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dpbert_jax.errors import UserError

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
NUM_PROCESSES = "JAX_NUM_PROCESSES"
PROCESS_ID = "JAX_PROCESS_ID"
TPU_HOSTS = "TPU_WORKER_HOSTNAMES"

MESSAGE_BYTES = 4096


def is_one_of_many(environment: Mapping[str, str]) -> bool:
    """Whether a TPU slice's environment says that it has several hosts."""
    return "," in environment.get(TPU_HOSTS, "")


def initialize(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the processes of a run; to be called before anything touches a device.

    TPU slices, Slurm, Open MPI and Kubernetes say all that is needed. Elsewhere the environment
    names it: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID.

    Raises:
        UserError: the environment does not tell, or the other processes do not answer.
    """
    named = [name for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if name in environment]
    if named and len(named) < 3:
        raise UserError(
            f"--multihost: the environment has {', '.join(named)}, but {COORDINATOR}, "
            f"{NUM_PROCESSES} and {PROCESS_ID} are needed together."
        )
    try:
        if named:
            count, number = (int(environment[name]) for name in (NUM_PROCESSES, PROCESS_ID))
            jax.distributed.initialize(environment[COORDINATOR], count, number)
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"--multihost: the processes of this run did not find each other ({reason}). Start "
            f"train.py on every host of a TPU slice or Slurm job, or set {COORDINATOR}, "
            f"{NUM_PROCESSES} and {PROCESS_ID} for each process."
        ) from error


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def from_main(make: Callable[[], Any], like: Any) -> Any:
    """What `make` returns on process 0, on all of them.

    Args:
        like: arrays, or their shapes and types, in the structure that `make` returns.

    Raises:
        UserError: process 0 raised it; the others raise it with the same words.
    """
    if jax.process_count() == 1:
        return make()
    made = on_main(make)
    if made is None:
        made = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return jax.device_get(multihost_utils.broadcast_one_to_all(made))


def on_main(action: Callable[[], Any]) -> Any:
    """Has process 0 do something while the others wait; returns its value there, None elsewhere.

    Raises:
        UserError: process 0 raised it; the others raise it with the same words.
    """
    if jax.process_count() == 1:
        return action()
    value, message = None, b""
    if is_main():
        try:
            value = action()
        except UserError as error:
            message = str(error).encode()[:MESSAGE_BYTES]
    padded = np.frombuffer(message.ljust(MESSAGE_BYTES, b"\0"), np.uint8)
    told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).rstrip(b"\0")
    if told:
        raise UserError(told.decode(errors="replace"))
    return value


def own_rows(count: int) -> np.ndarray:
    """Which of `count` rows are this process's part of a job that all share."""
    return np.arange(jax.process_index(), count, jax.process_count())


def all_rows(values: np.ndarray, count: int) -> np.ndarray:
    """The parts that all processes have of `count` rows (`own_rows`), in order; [count, ...]."""
    processes = jax.process_count()
    if processes == 1:
        return values
    most = -(-count // processes)
    padding = np.zeros((most - len(values), *values.shape[1:]), values.dtype)
    parts = multihost_utils.process_allgather(np.concatenate([values, padding]))
    # Row r is row r // processes of process r % processes.
    return np.asarray(parts).swapaxes(0, 1).reshape(-1, *values.shape[1:])[:count]


def check_agreement(what: str, *contents: bytes) -> None:
    """Refuses to go on where the processes differ in something that must be the same.

    Raises:
        UserError: on every process.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    mine = np.frombuffer(digest.digest()[:16], np.int32)
    every = np.asarray(multihost_utils.process_allgather(mine))
    odd = [number for number, other in enumerate(every) if (other != every[0]).any()]
    if odd:
        raise UserError(
            f"--multihost: process {', '.join(map(str, odd))} has other {what} than process 0; "
            "give all hosts the same flags and the same files."
        )
