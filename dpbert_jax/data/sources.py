"""Where a task's rows come from: own files, a GLUE folder, the hub, or a built-in dataset."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dpbert_jax.data import docstrings, documents
from dpbert_jax.data.classes import Classes, aligned, with_positive_class
from dpbert_jax.data.columns import Columns
from dpbert_jax.data.custom import LabelUse, load_files
from dpbert_jax.data.glue_folder import load_glue_folder, task_of_folder
from dpbert_jax.data.tasks import GLUE_TASKS, Examples, TaskData, TaskSpec, canonical_name
from dpbert_jax.errors import UserError

logger = logging.getLogger(__name__)

HUB_NAME = "nyu-mll/glue"
BUILT_IN = {
    docstrings.TASK_NAME: docstrings.load_docstrings,
    documents.TASK_NAME: documents.load_documents,
}
TASK_NAMES = (*GLUE_TASKS, *BUILT_IN)


def load_task(
    *,
    task_name: str | None = None,
    data_dir: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    columns: Columns | None = None,
    trained_on: Columns | None = None,
    problem_type: str | None = None,
    model: Classes | None = None,
    positive_class: str | None = None,
    labels: LabelUse = "needed",
    on_bad_row: str = "error",
) -> TaskData:
    """Load a task from exactly one source.

    - `train_file` and `validation_file`, maybe `test_file`: own files (`custom.load_files`).
      Without `train_file`, to evaluate a trained model, `model` says which classes it knows.
    - `task_name="docstrings"` or `"documents"`: a built-in dataset.
    - `data_dir`: GLUE's published files, either the folder of the task or the one above it.
      `task_name` may be left out where the folder's name tells it.
    - `task_name` alone: GLUE from the Hugging Face hub.

    A row of a file that cannot be used is refused; with `on_bad_row="skip"` it is left out, noted
    in `TaskData.skipped` and counted in the log.

    Args:
        columns: what the user named, for own files, as is `problem_type`.
        trained_on: the columns of the model's run, which own files must have.
        model: the classes of a trained model; the task's are brought into their order.
        positive_class: the class that F1 is of.
        labels: whether an own validation file must have them, may, or is not asked for them.

    Raises UserError for an unknown task, for arguments that contradict each other, and for data
    that cannot be read, or is not what the model was trained for.
    """
    named = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {split: Path(path) for split, path in named.items() if path}
    if files:
        _check_own_files(files, task_name, data_dir)
        task = load_files(
            files,
            flags=columns,
            trained_on=trained_on,
            problem_type=problem_type,
            model=model,
            labels=labels,
            on_bad_row=on_bad_row,
        )
    else:
        for flag, value in _flags_of_own_files(columns, problem_type):
            if value:
                raise UserError(f"{flag} {value} is for one's own files; a named task has its own.")
        task = _load_named(task_name, data_dir, on_bad_row)
        task = aligned(task, model) if model else task
    _log_skipped(task)
    if positive_class is not None:
        task = replace(task, spec=with_positive_class(task.spec, positive_class))
    return task


def _flags_of_own_files(
    columns: Columns | None, problem_type: str | None
) -> list[tuple[str, str | None]]:
    columns = columns or Columns()
    return [
        ("--text_column_name", columns.text),
        ("--text_pair_column_name", columns.text_pair),
        ("--label_column_name", columns.label),
        ("--problem_type", problem_type),
    ]


def _load_named(task_name: str | None, data_dir: str | None, on_bad_row: str) -> TaskData:
    task = None if task_name is None else _known_task(task_name)
    if task in BUILT_IN:
        if data_dir:
            raise UserError(f"--data_dir {data_dir} has no part in the built-in task '{task}'.")
        return BUILT_IN[task]()
    if data_dir:
        return load_glue_folder(*_task_folder(Path(data_dir), task), on_bad_row)
    if task is None:
        raise UserError(
            "No data: give --task_name, --data_dir, or --train_file with --validation_file. "
            f"Tasks: {', '.join(TASK_NAMES)}."
        )
    return _load_from_hub(GLUE_TASKS[task])


def _log_skipped(task: TaskData) -> None:
    """Tells how many rows were left out, and why the first of them."""
    for split, messages in task.skipped.items():
        shown = "".join(f"\n  {message}" for message in messages[:3])
        more = "\n  ..." if len(messages) > 3 else ""
        total = len(messages) + len(task.splits[split])
        logger.warning("%s: %d of %d rows skipped.%s%s", split, len(messages), total, shown, more)


def _known_task(task_name: str) -> str:
    task = canonical_name(task_name)
    if task not in TASK_NAMES:
        raise UserError(f"Task '{task_name}' is not one of {', '.join(TASK_NAMES)}.")
    return task


def _check_own_files(files: dict[str, Path], task_name: str | None, data_dir: str | None) -> None:
    for flag, value in (("--task_name", task_name), ("--data_dir", data_dir)):
        if value:
            raise UserError(
                f"{flag} {value} and one's own files are two sources of data: give one of them."
            )
    if "validation" not in files:
        raise UserError("Own files need --validation_file.")


def _task_folder(folder: Path, task: str | None) -> tuple[Path, str]:
    """The folder that holds the task's files, and the task."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder.")
    told = task_of_folder(folder)
    wanted = task or told
    if wanted is None:
        raise UserError(
            f"The name of {folder} does not tell the task: give --task_name as well, "
            f"one of {', '.join(GLUE_TASKS)}."
        )
    if told == wanted:
        return folder, wanted
    if told is not None:
        raise UserError(
            f"--task_name {wanted} contradicts --data_dir {folder}, which is of {told}."
        )
    inside = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    return next((child for child in inside if task_of_folder(child) == wanted), folder), wanted


def _load_from_hub(spec: TaskSpec) -> TaskData:
    # Imported here: it takes over a second, which the other sources need not wait for.
    import datasets

    try:
        hub: Any = datasets.load_dataset(HUB_NAME, spec.name)
    except OSError as error:  # ConnectionError among them
        raise UserError(
            f"{HUB_NAME} cannot be had from the Hugging Face hub ({error}); "
            f"pass --data_dir with the published {spec.name} files."
        ) from error
    splits = {name: _from_hub_split(spec, rows) for name, rows in hub.items()}
    return TaskData(spec, splits)


def _from_hub_split(spec: TaskSpec, rows: Any) -> Examples:
    """One split as the hub has it: columns `text_columns` and `label`, -1 where unlabelled."""
    names = getattr(rows.features["label"], "names", None) or ()
    ids = [Classes(spec.problem_type, spec.labels or ()).find(name) for name in names]
    if sorted(index for index in ids if index is not None) != list(range(len(spec.labels or ()))):
        raise UserError(f"{HUB_NAME} has {spec.name} with labels {names}, not {spec.labels}.")
    labels = np.asarray(rows["label"], np.float32)
    if not spec.is_regression:
        labels = np.asarray([*ids, -1], np.int32)[labels.astype(np.int32)]  # -1 stays what it is
    texts = [list(rows[column]) for column in spec.text_columns]
    return Examples(
        text_a=texts[0],
        text_b=texts[1] if len(texts) == 2 else None,
        labels=None if (labels == -1).all() else labels,
    )
