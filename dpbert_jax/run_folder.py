"""The layout of a run's folder, which every script after train.py reads."""

import json
from pathlib import Path
from typing import Any

from dpbert_jax.errors import UserError

TEACHER = "teacher"  # the dense model of stage 1, a plain Hugging Face BERT folder
BEST = "best"  # the model of the best epoch so far, with --keep_best
BASELINES = "baselines"  # what `dpbert baselines` trained for the run
TRAIN_CONFIG = "train_config.json"
EXPORT_CONFIG = "export_config.json"  # of a folder that `dpbert export` wrote
RESOLVED = "resolved"  # in it, what followed from the flags, the devices and the data
COLUMNS = "columns"  # and in that, the columns that the run was trained on
SKIPPED_ROWS = "skipped_rows.txt"  # there only where rows were skipped
METRICS = "metrics.jsonl"
HELD_OUT = "rows held out of training"  # what a run finds its thresholds on
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
WANDB = "wandb"


def read_train_config(folder: Path) -> dict[str, Any]:
    """The flags that a run was started with."""
    record = _read_record(folder)
    record.pop(RESOLVED, None)
    return record


def read_resolved(folder: Path) -> dict[str, Any]:
    """What followed from the flags, the devices and the data.

    `global_batch_size`, rows a step; `columns`, the fields of `data.columns.Columns`. Empty for a
    run from before they were recorded.
    """
    return _read_record(folder).get(RESOLVED, {})


def read_max_seq_length(folder: Path) -> int | None:
    """Tokens that a run's or an export's inputs were cut to; None where the folder does not say."""
    for name in (TRAIN_CONFIG, EXPORT_CONFIG):
        if (folder / name).exists():
            return _read_record(folder, name).get("max_seq_length")
    return None


def _read_record(folder: Path, name: str = TRAIN_CONFIG) -> dict[str, Any]:
    path = folder / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {TRAIN_CONFIG}: it was not made by train.py. Name the task and its "
            "data with --task_name, --data_dir or --validation_file."
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
