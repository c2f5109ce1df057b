"""What a run is made of, read and checked before its output folder is claimed."""

from pathlib import Path
from typing import Any, NamedTuple

from dpbert_jax import hosts
from dpbert_jax.config import DPBertConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.data import TaskData
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.task import recorded_columns
from dpbert_jax.hub import load_params, load_tokenizer, resolve_folder
from dpbert_jax.programs import on_host
from dpbert_jax.training.arguments import NEVER, TrainArguments
from dpbert_jax.training.configs import adapted_config, dense_config, planned_config
from dpbert_jax.training.rows import Rows, training_rows
from dpbert_jax.training.task import columns_of, training_task


class Material(NamedTuple):
    """A run's data, and the model that it starts from."""

    task: TaskData
    tokenizer: Any
    rows: Rows
    dense: DPBertConfig
    planned: DPBertConfig  # the same with a planner
    adapted: DPBertConfig  # and with adapters, where they are asked for
    params: Params  # of the pretrained model or of the teacher, without a planner


def prepare(args: TrainArguments, platform: str) -> Material:
    """Reads a run's data and model; `platform` is the kind of device that trains it.

    Raises:
        UserError: something of it cannot be read, or does not fit the rest or the flags.
    """
    source = resolve_folder(args.teacher or args.model_name_or_path or "")
    before = recorded_columns(Path(args.output_dir)) if args.resume != NEVER else None
    task = training_task(args, before, read_config(source).encoder if args.teacher else None)
    if "train" not in task.splits:
        raise UserError("This data has no training split; train.py needs one.")
    hosts.check_agreement("columns", repr(columns_of(task)).encode())
    dense = dense_config(source, task, args)
    planned = planned_config(dense, args)
    tokenizer = load_tokenizer(source)
    if args.masked_share and tokenizer.mask_token_id is None:
        raise UserError(f"The tokenizer of {source} has no mask token: leave --masked_share out.")
    with on_host(platform):
        params = load_params(
            source,
            dense,
            fresh=() if args.teacher else ("head",),
            ignore_mismatched_sizes=args.ignore_mismatched_sizes,
            seed=args.seed,
        )
    rows = training_rows(
        task,
        tokenizer,
        max_seq_length=args.max_seq_length,
        max_train_samples=args.max_train_samples,
        seed=args.seed,
    )
    types = dense.encoder.type_vocab_size
    if dense.encoder.family.token_types and rows.kept.type_ids.max(initial=0) >= types:
        raise UserError(
            f"This data has pairs of texts, but {source} has an embedding for the first of two "
            f"only (type_vocab_size is {types}): start from another model."
        )
    adapted = adapted_config(planned, args)
    return Material(task, tokenizer, rows, dense, planned, adapted, params)
