"""From raw text to length-bucketed batches of numpy arrays; knows nothing of models."""

from dpbert_jax.data.batches import (
    INPUTS,
    LENGTH_BUCKETS,
    Batch,
    batches,
    bucket_length,
    chunks,
    epoch_schedule,
    num_batches,
)
from dpbert_jax.data.buckets import default_buckets
from dpbert_jax.data.classes import Classes, classes_of_model
from dpbert_jax.data.columns import Columns
from dpbert_jax.data.custom import LabelUse
from dpbert_jax.data.sources import TASK_NAMES, load_task
from dpbert_jax.data.tasks import GLUE_TASKS, Examples, TaskData, TaskSpec
from dpbert_jax.data.tokenize import TokenizedSplit, tokenize

__all__ = [
    "GLUE_TASKS",
    "INPUTS",
    "LENGTH_BUCKETS",
    "TASK_NAMES",
    "Batch",
    "Classes",
    "Columns",
    "Examples",
    "LabelUse",
    "TaskData",
    "TaskSpec",
    "TokenizedSplit",
    "batches",
    "bucket_length",
    "chunks",
    "classes_of_model",
    "default_buckets",
    "epoch_schedule",
    "load_task",
    "num_batches",
    "tokenize",
]
