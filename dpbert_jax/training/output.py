"""The output folder of a run: who may write to it, and what was asked of it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from dpbert_jax.data import Columns, TaskData
from dpbert_jax.errors import UserError
from dpbert_jax.integrity import SUMS
from dpbert_jax.run_folder import (
    BASELINES,
    BEST,
    CHECKPOINTS,
    COLUMNS,
    METRICS,
    RESOLVED,
    SKIPPED_ROWS,
    TEACHER,
    TENSORBOARD,
    TRAIN_CONFIG,
    WANDB,
    read_resolved,
    read_train_config,
)
from dpbert_jax.training.arguments import ALWAYS, NEVER, TrainArguments

# What a run writes; only this is removed when a run is replaced.
RUN_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.partial",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "config.json.partial",
    SUMS,
    f"{SUMS}.partial",
    METRICS,
    TRAIN_CONFIG,
    f"{TRAIN_CONFIG}.partial",
    SKIPPED_ROWS,
)
RUN_FOLDERS = (BEST, CHECKPOINTS, TEACHER, BASELINES, TENSORBOARD, WANDB)

# These may differ between a run and its resumption: they change no parameter.
FREE_FLAGS = (
    "output_dir",
    "overwrite_output_dir",
    "resume",
    "save_steps",
    "logging_steps",
    "report_to",
    "per_device_eval_batch_size",
    "max_eval_samples",
    "multihost",
    "per_device_train_batch_size",  # the global batch may not
)


def open_output(args: TrainArguments, global_batch_size: int, columns: Columns) -> Path:
    """Makes the folder ready for this run and records the flags in `train_config.json`.

    There too, for whatever comes after the run: rows a step, and the columns that were read.

    `--resume auto` goes on with the run that the folder holds, or begins one where it holds none.

    Raises:
        UserError: the folder holds something else, or another run that was not to be replaced, or
            the run to resume had other flags (each named).
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file.")
    if args.resume != NEVER and args.overwrite_output_dir:
        raise UserError("--resume and --overwrite_output_dir contradict each other.")
    holds_run = (folder / TRAIN_CONFIG).exists()
    occupied = folder.exists() and any(folder.iterdir())
    if args.resume == ALWAYS and not holds_run:
        raise UserError(f"--resume: {folder} holds no run to go on with.")
    resuming = args.resume != NEVER and holds_run
    if resuming:
        _refuse_changes(args, global_batch_size, folder)
    elif occupied and not holds_run:
        raise UserError(
            f"--output_dir {folder} is not empty and holds no run of this library; name another."
        )
    elif occupied and not args.overwrite_output_dir:
        raise UserError(
            f"--output_dir {folder} holds a run already. Go on with it (--resume), replace it "
            "(--overwrite_output_dir), or name another folder."
        )
    elif occupied:
        for name in RUN_FILES:
            (folder / name).unlink(missing_ok=True)
        for name in RUN_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not resuming:
        resolved = {
            "global_batch_size": global_batch_size,
            COLUMNS: dataclasses.asdict(columns),
        }
        record = {**_recorded(args), RESOLVED: resolved}
        partial = folder / f"{TRAIN_CONFIG}.partial"
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / TRAIN_CONFIG)  # a folder that has it can be resumed
    return folder


def write_skipped_rows(folder: Path, task: TaskData) -> None:
    """Lists every row that was left out, a line each: its split, its place, what is wrong."""
    lines = [
        f"{split}: {message}\n" for split, messages in task.skipped.items() for message in messages
    ]
    if lines:
        (folder / SKIPPED_ROWS).write_text(
            "".join(lines), encoding="utf-8", errors="backslashreplace"
        )


def _recorded(args: TrainArguments) -> dict[str, Any]:
    """The flags, with absolute paths of the data: eval.py may run from another folder."""
    values = dataclasses.asdict(args)
    for name in ("data_dir", "train_file", "validation_file"):
        if values[name]:
            values[name] = str(Path(values[name]).absolute())
    return values


def recorded_arguments(folder: Path) -> TrainArguments:
    """The flags that a run was started with; one that is newer than the run has its default.

    Raises:
        UserError: the folder is no run, or its record has a flag that there is not, or that is
            none of today's values.
    """
    record = read_train_config(folder)
    known = {field.name for field in dataclasses.fields(TrainArguments)}
    if unknown := sorted(set(record) - known):
        raise UserError(
            f"{folder / TRAIN_CONFIG} has flags that this version of dpbert_jax does not know: "
            f"{', '.join(unknown)}. Use the version that made the run."
        )
    return TrainArguments(**record)


def _refuse_changes(args: TrainArguments, global_batch_size: int, folder: Path) -> None:
    now, before = _recorded(args), read_train_config(folder)
    # A flag that is newer than the run had its default.
    before = {name: getattr(TrainArguments, name, None) for name in now} | before
    changed = [
        f"--{name} was {before[name]}, is {now[name]}"
        for name in now
        if name not in FREE_FLAGS and now[name] != before[name]
    ]
    if changed:
        raise UserError(f"--resume needs the flags that the run had: {'; '.join(changed)}.")
    had = read_resolved(folder).get("global_batch_size", global_batch_size)
    if had != global_batch_size:
        raise UserError(
            f"--resume: the run learned from {had} rows a step, and this would be "
            f"{global_batch_size}. Rows a step = --per_device_train_batch_size x devices x "
            "--gradient_accumulation_steps: change the first to make up for other devices."
        )
