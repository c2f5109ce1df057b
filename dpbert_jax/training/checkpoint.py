"""Checkpoints of a run; the only place that knows orbax."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dpbert_jax import hosts
from dpbert_jax.errors import UserError

logger = logging.getLogger(__name__)

KEPT = 2  # the newest, and the one before it in case the newest turns out damaged
SEAL = "sha256"


class Position(NamedTuple):
    """Where in the run a checkpoint stands; the data position follows from it."""

    stage: int  # index of the stage that the state belongs to
    stage_step: int  # steps done in that stage


class Checkpoints:
    """Saves (position, state) under the global step; restores the newest one that is whole.

    Process 0 reads and writes; the others take part in `restore` only.

    Saving goes on in the background while training does. It happens in a temporary folder, which is
    renamed when all of it is written: a crash leaves no half checkpoint behind. Beside the state
    lies a record, with the run's resolved config and a checksum of every array and of itself.
    `on_saved` is called in the background behind each save.
    """

    def __init__(
        self,
        folder: Path,
        resolved: dict[str, Any],
        on_saved: Callable[[], None] | None = None,
    ) -> None:
        self._folder, self._resolved = folder.absolute(), resolved
        self._manager: ocp.CheckpointManager | None = None
        if not hosts.is_main():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # What a killed run left half written. Orbax's own option does this in a thread that may
        # outlive the manager, and then takes the next one's first checkpoint for such a leftover.
        for path in self._folder.iterdir():
            if ocp.utils.is_tmp_checkpoint(path):
                shutil.rmtree(path)
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=False,
            multiprocessing_options=alone,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=on_saved),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, global_step: int, position: Position, state: Any) -> None:
        """Takes a copy of the state and begins to write it.

        Raises:
            UserError: the save before this one failed, or this one cannot begin.
        """
        if self._manager is None:
            return
        # A copy: the next step takes over the buffers of this one's state.
        state = jax.tree.map(lambda leaf: np.array(leaf), state)
        record = {"position": position._asdict(), "config": self._resolved, "arrays": _sums(state)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(_sealed(record))
        )
        with self._explained():
            self._manager.save(global_step, args=items, force=True)

    def check(self) -> None:
        """Raises UserError where a save in the background has failed; costs nothing."""
        if self._manager is not None:
            with self._explained():
                self._manager.check_for_errors()

    def restore(self, abstract_state: Callable[[int], Any]) -> tuple[int, Position, Any] | None:
        """The newest whole checkpoint as (global step, position, state); None if there is none.

        Args:
            abstract_state: shapes and types of the state of a stage, by stage index.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        found = hosts.on_main(lambda: self._newest(abstract_state))

        def header() -> np.ndarray:
            return np.array([0, 0, 0, 0] if found is None else [1, found[0], *found[1]], np.int32)

        exists, step, *position = map(int, hosts.from_main(header, like=np.zeros(4, np.int32)))
        if not exists:
            return None
        like = abstract_state(position[0])
        return step, Position(*position), hosts.from_main(lambda: found and found[2], like=like)

    def _newest(self, abstract_state: Callable[[int], Any]) -> tuple[int, Position, Any] | None:
        assert self._manager is not None
        steps = sorted(self._manager.all_steps(), reverse=True)
        for number, step in enumerate(steps):
            try:
                found = self._manager.restore(
                    step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
                )
                record = _unsealed(found["record"])
                position = Position(**record["position"])
                target = abstract_state(position.stage)
                found = self._manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
                )
                # On the host: the run that goes on may have other devices.
                state = jax.device_get(found["state"])
                _check_sums(state, record["arrays"])
                for damaged in steps[:number]:  # or their numbers could never be saved again
                    self._manager.delete(damaged)
                return step, position, state
            except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
                logger.warning(
                    "The checkpoint of step %d is damaged (%s); trying the one before it.",
                    step,
                    _first_line(error),
                )
        if steps:
            raise UserError(
                f"{self._folder}: none of the checkpoints {steps} can be read; start again with "
                "--overwrite_output_dir."
            )
        return None

    def close(self) -> None:
        """Waits until all is written.

        Raises:
            UserError: it could not be.
        """
        if self._manager is None:
            return
        manager, self._manager = self._manager, None
        with self._explained():
            manager.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what orbax and its storage raise, of many types, into one sentence."""
        try:
            yield
        except Exception as error:
            self._manager = None
            raise UserError(
                f"A checkpoint could not be written to {self._folder} ({_reason(error)}). "
                "Training has stopped; the checkpoints before it are intact: make room, or mend "
                "the storage, and go on with --resume."
            ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(" [tensorstore_spec=")[0]


def _reason(error: Exception) -> str:
    """What the operating system said, where that is in the long message of the storage."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else _first_line(error)


def _sums(state: Any) -> dict[str, str]:
    """A checksum of each array, by its path in the state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): hashlib.sha256(
            np.ascontiguousarray(leaf).tobytes()
        ).hexdigest()
        for path, leaf in leaves
    }


def _check_sums(state: Any, wanted: dict[str, str]) -> None:
    changed = [path for path, found in _sums(state).items() if wanted.get(path) != found]
    if changed:
        raise ValueError(f"{', '.join(changed[:3])}: not as it was saved, the checksum differs")


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sealed(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, SEAL: _seal(record)}


def _unsealed(record: dict[str, Any]) -> dict[str, Any]:
    inside = {name: value for name, value in record.items() if name != SEAL}
    if record.get(SEAL) != _seal(inside):
        raise ValueError("its record is not as it was saved, the checksum differs")
    return inside
