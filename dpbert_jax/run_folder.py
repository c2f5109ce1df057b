"""The layout of a run's folder, which every script after train.py reads."""

import json
from pathlib import Path
from typing import Any

from dpbert_jax.errors import UserError

TEACHER = "teacher"  # the dense model of stage 1, a plain Hugging Face BERT folder
BASELINES = "baselines"  # what `python -m dpbert_jax.baselines` trained for the run
TRAIN_CONFIG = "train_config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
WANDB = "wandb"


def read_train_config(folder: Path) -> dict[str, Any]:
    """The flags that a run was started with."""
    path = folder / TRAIN_CONFIG
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {TRAIN_CONFIG}: it was not made by train.py. Name the task and its "
            "data with --task_name, --data_dir or --validation_file."
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
