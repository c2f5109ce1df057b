"""Which data a model is evaluated on: its run's own, unless the flags name other."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.data import Classes, Columns, LabelUse, TaskData, classes_of_model, load_task
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.run_folder import COLUMNS, TRAIN_CONFIG, read_resolved, read_train_config

# What a run's own data, or more of the same, is read by.
_OF_THE_DATA = ("label_mapping", "positive_class")


def with_run_defaults(args: EvalArguments, folder: Path) -> EvalArguments:
    """Task and data of the run, unless others were named."""
    own_data = args.task_name or args.data_dir or args.validation_file
    try:
        before = read_train_config(folder)
    except UserError:
        if own_data:
            return args  # a model from elsewhere, on data that was named
        raise
    changes: dict[str, Any] = {
        "model_name_or_path": str(folder),  # of a bucket's URL: where the run's record lies
        "max_seq_length": args.max_seq_length or before["max_seq_length"],
    }
    inherited: tuple[str, ...] = ()
    if not own_data:
        changes |= {key: before[key] for key in ("task_name", "data_dir", "validation_file")}
        inherited = (*_OF_THE_DATA, "on_bad_row")
    elif args.validation_file:
        inherited = _OF_THE_DATA
    # Runs from before a flag have none.
    changes |= {key: getattr(args, key) or before.get(key) for key in inherited}
    return dataclasses.replace(args, **changes)


def recorded_columns(folder: Path) -> Columns | None:
    """The columns that a run was trained on; None where no run, or an older one, tells."""
    if not (folder / TRAIN_CONFIG).is_file():
        return None
    record = read_resolved(folder).get(COLUMNS)
    return Columns(**record) if record else None


def classes_of(encoder: EncoderConfig, label_mapping: Sequence[str] | None = None) -> Classes:
    """The classes that a model answers with, for data to be read by."""
    return classes_of_model(encoder.problem_type, encoder.num_labels, encoder.labels, label_mapping)


def load_task_of(
    args: EvalArguments, config: DPBertConfig, labels: LabelUse = "needed"
) -> TaskData:
    """The data that the flags name, its classes in the model's order.

    Args:
        labels: whether a file of one's own must have them; without, those of its split are None.

    Raises:
        UserError: it is not what the model was trained for, or lacks a validation split.
    """
    task = load_task(
        task_name=args.task_name,
        data_dir=args.data_dir,
        validation_file=args.validation_file,
        columns=Columns(args.text_column_name, args.text_pair_column_name, args.label_column_name),
        trained_on=recorded_columns(Path(args.model_name_or_path)),
        model=classes_of(config.encoder, args.label_mapping),
        positive_class=args.positive_class,
        labels=labels,
        on_bad_row=args.on_bad_row or "error",
    )
    missing = [name for name in task.spec.validation_splits if name not in task.splits]
    if missing:
        raise UserError(f"The data has no split {missing}.")
    return task
