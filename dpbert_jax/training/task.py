"""The task that a run is trained on, as its flags, its teacher and its record have it."""

from typing import Any

from dpbert_jax.config import EncoderConfig
from dpbert_jax.data import Columns, TaskData, load_task
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.task import classes_of
from dpbert_jax.training.arguments import TrainArguments


def training_task(
    args: TrainArguments, trained_on: Columns | None, model: EncoderConfig | None
) -> TaskData:
    """Loads the task.

    Args:
        trained_on: the columns that the run has been trained on, where it has.
        model: the model whose classes are the task's: a teacher, or the run's own; None: the
            classes follow from the data.

    Raises:
        UserError: the data cannot be read, or is not of the model's classes.
    """
    classes = classes_of(model, args.label_mapping) if model else None
    if classes and args.problem_type not in (None, classes.problem_type):
        raise UserError(
            f"--problem_type {args.problem_type}: the teacher was trained for "
            f"{classes.problem_type}."
        )
    return load_task(
        task_name=args.task_name,
        data_dir=args.data_dir,
        train_file=args.train_file,
        validation_file=args.validation_file,
        columns=Columns(args.text_column_name, args.text_pair_column_name, args.label_column_name),
        trained_on=trained_on,
        problem_type=args.problem_type,
        model=classes,
        positive_class=args.positive_class,
        on_bad_row=args.on_bad_row,
    )


def columns_of(task: TaskData) -> Columns:
    """The columns that the task was read from."""
    first, second = (*task.spec.text_columns, None)[:2]
    return Columns(first, second, task.spec.label_column)


def validation_data(args: TrainArguments, task: TaskData) -> dict[str, Any]:
    """The flags of `eval.py` for the run's own data, read as it was for training.

    All of them, since only process 0 can look into the run's folder for what is missing.
    """
    columns = columns_of(task) if args.validation_file else Columns()
    return {
        "task_name": args.task_name,
        "data_dir": args.data_dir,
        "validation_file": args.validation_file,
        "text_column_name": columns.text,
        "text_pair_column_name": columns.text_pair,
        "label_column_name": columns.label,
        "label_mapping": args.label_mapping,
        "positive_class": args.positive_class,
        "on_bad_row": args.on_bad_row,
        "max_seq_length": args.max_seq_length,
    }
