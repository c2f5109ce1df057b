"""Checkpoints of a run; the only place that knows orbax."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from dpbert_jax.errors import UserError

logger = logging.getLogger(__name__)

KEPT = 2  # the newest, and the one before it in case the newest turns out damaged


class Position(NamedTuple):
    """Where in the run a checkpoint stands; the data position follows from it."""

    stage: int  # index of the stage that the state belongs to
    stage_step: int  # steps done in that stage


class Checkpoints:
    """Saves (position, state) under the global step; restores the newest one that can be read."""

    def __init__(self, folder: Path) -> None:
        # Synchronous saves: the state's buffers are donated to the next step.
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        # What a killed run left half written. Orbax's own option does this in a thread that may
        # outlive the manager, and then takes the next one's first checkpoint for such a leftover.
        for path in folder.iterdir() if folder.is_dir() else ():
            if ocp.utils.is_tmp_checkpoint(path):
                shutil.rmtree(path)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, global_step: int, position: Position, state: Any) -> None:
        """Writes to a temporary folder and renames it: a crash leaves no half checkpoint behind."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.device_get(state)),
            position=ocp.args.JsonSave(position._asdict()),
        )
        self._manager.save(global_step, args=items, force=True)

    def restore(self, abstract_state: Callable[[int], Any]) -> tuple[int, Position, Any] | None:
        """The newest complete checkpoint as (global step, position, state); None if there is none.

        Args:
            abstract_state: shapes and types of the state of a stage, by stage index.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for number, step in enumerate(steps):
            try:
                found = self._manager.restore(
                    step, args=ocp.args.Composite(position=ocp.args.JsonRestore())
                )
                position = Position(**found["position"])
                target = abstract_state(position.stage)
                found = self._manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
                )
                for damaged in steps[:number]:  # or their numbers could never be saved again
                    self._manager.delete(damaged)
                # On the host: the run that goes on may have other devices.
                return step, position, jax.device_get(found["state"])
            except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
                reason = str(error).strip().splitlines()[0]
                logger.warning(
                    "The checkpoint of step %d is damaged (%s); trying the one before it.",
                    step,
                    reason,
                )
        if steps:
            raise UserError(
                f"{self._manager.directory}: none of the checkpoints {steps} can be read; start "
                "again with --overwrite_output_dir."
            )
        return None

    def close(self) -> None:
        self._manager.close()
