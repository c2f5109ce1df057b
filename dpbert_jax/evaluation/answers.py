"""A model's answers to the rows of a file: label, probabilities, layers and cost, a row each."""

import csv
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpbert_jax import hosts
from dpbert_jax.config import EncoderConfig
from dpbert_jax.data import tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.evaluate import Predictions
from dpbert_jax.evaluation.runner import make_runner
from dpbert_jax.evaluation.task import load_task_of, with_run_defaults
from dpbert_jax.inference import resolve_rule
from dpbert_jax.model import Model
from dpbert_jax.problem import answers, probabilities

logger = logging.getLogger(__name__)

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def write_answers(args: EvalArguments, model: Model) -> None:
    """Answers the rows of `--predict_file`, in their order, into `--output_file`.

    Raises:
        UserError: a row cannot be read (none is left out: an answer's number would no longer be its
            row's), or the output cannot be written.
    """
    assert args.predict_file and args.output_file and model.folder
    if args.on_bad_row == "skip":
        raise UserError("--on_bad_row skip: every row of --predict_file gets its answer, or none.")
    output = Path(args.output_file)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a"):  # refused before anything is computed
            pass
    except OSError as error:
        raise UserError(f"--output_file {output} cannot be written: {error.strerror}.") from error
    wanted = dataclasses.replace(
        args, task_name=None, data_dir=None, validation_file=args.predict_file, on_bad_row="error"
    )
    wanted = with_run_defaults(wanted, model.folder)
    rows = load_task_of(wanted, model.config, labels="unread").splits["validation"]
    run = make_runner(wanted, model)
    split = tokenize(rows.head(args.max_eval_samples), model.tokenizer, run.max_seq_length)
    rule = resolve_rule(model.config, args.budget[0], args.plan_rule)
    predictions = run(rule, split, f"answers at {rule.budget:g}")
    if hosts.is_main():
        _write(output, answer_rows(model.config.encoder, predictions))
    logger.info(
        "%d answers are in %s: budget %g, mean cost %.3f.",
        *(len(split), output, rule.budget, predictions.cost.mean()),
    )


def answer_rows(config: EncoderConfig, predictions: Predictions) -> Iterator[dict[str, Any]]:
    """A row for each input: its index from 0, what the model says, the layers that ran, its cost.

    `label` is the class's name, or the list of the labels; `probabilities` go by name. A regression
    has `score` in their place.
    """
    logits, names = predictions.logits, config.label_names
    said = answers(logits, config.problem_type)
    for index, mask in enumerate(predictions.layer_mask):
        row: dict[str, Any] = {"index": index}
        if config.is_regression:
            row["score"] = float(said[index])
        else:
            each = probabilities(logits[index], config.problem_type)
            if config.is_multi_label:
                row["label"] = [names[i] for i in np.flatnonzero(said[index])]
            else:
                row["label"] = names[int(said[index])]
            row["probabilities"] = dict(zip(names, map(float, each), strict=True))
        row["layers"] = np.flatnonzero(mask).tolist()
        row["cost"] = float(predictions.cost[index])
        yield row


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    delimiter = DELIMITERS.get(path.suffix.lower())
    with path.open("w", newline="", encoding="utf-8") as file:
        if delimiter is None:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer = None
        for row in map(_flat, rows):
            if writer is None:
                writer = csv.DictWriter(file, list(row), delimiter=delimiter)
                writer.writeheader()
            writer.writerow(row)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """For a table: a column for each probability, numbers of layers with blanks between."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "probabilities":
            flat |= {f"probability_{label}": share for label, share in value.items()}
        elif isinstance(value, list):
            flat[name] = (" " if name == "layers" else ",").join(map(str, value))
        else:
            flat[name] = value
    return flat
