"""Which data a model is evaluated on: its run's own, unless the flags name other."""

import dataclasses
from pathlib import Path
from typing import Any

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TaskData, load_task
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.run_folder import read_train_config


def with_run_defaults(args: EvalArguments, folder: Path) -> EvalArguments:
    """Task and data of the run, unless others were named."""
    own_data = args.task_name or args.data_dir or args.validation_file
    if own_data and args.max_seq_length:
        return args
    try:
        before = read_train_config(folder)
    except UserError:
        if own_data:
            return args  # a model from elsewhere, on data that was named
        raise
    changes: dict[str, Any] = {"max_seq_length": args.max_seq_length or before["max_seq_length"]}
    if not own_data:
        changes |= {key: before[key] for key in ("task_name", "data_dir", "validation_file")}
        # Runs from before the flag have none.
        changes["on_bad_row"] = args.on_bad_row or before.get("on_bad_row")
    return dataclasses.replace(args, **changes)


def load_task_of(args: EvalArguments, config: DPBertConfig, labelled: bool = True) -> TaskData:
    """The data that the flags name.

    Raises:
        UserError: it is not what the model was trained for, or lacks a validation split.
    """
    # Class names of the model, so that ids agree whatever order a file has them in.
    bert = config.bert
    labels = () if bert.is_regression else bert.labels
    task = load_task(
        task_name=args.task_name,
        data_dir=args.data_dir,
        validation_file=args.validation_file,
        labels=labels if args.validation_file else None,
        on_bad_row=args.on_bad_row or "error",
    )
    spec = task.spec
    if (spec.num_labels, spec.problem_type) != (bert.num_labels, bert.problem_type):
        kind = "a regression" if bert.is_regression else f"{bert.num_labels} classes"
        kind = f"{bert.num_labels} labels, any number a row" if bert.is_multi_label else kind
        raise UserError(f"The model was trained for {kind}, which task '{spec.name}' is not.")
    missing = [name for name in spec.validation_splits if name not in task.splits]
    if missing:
        raise UserError(f"The data has no split {missing}.")
    return task
