"""A model's answers to the rows of a file: label, probabilities, layers and cost, a row each."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpbert_jax import hosts
from dpbert_jax.config import EncoderConfig
from dpbert_jax.data import tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.answer_files import answer_row, make_room, write_answer_rows
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.evaluate import Predictions
from dpbert_jax.evaluation.runner import make_runner
from dpbert_jax.evaluation.task import load_task_of, with_run_defaults
from dpbert_jax.inference import resolve_rule
from dpbert_jax.model import Model, decode_logits
from dpbert_jax.policies.cost import mean_cost

logger = logging.getLogger(__name__)


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
    make_room(output)
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
        write_answer_rows(output, answer_rows(model.config.encoder, predictions))
    logger.info(
        "%d answers are in %s: budget %g, mean cost %.3f.",
        *(
            len(split),
            output,
            rule.budget,
            mean_cost(model.config, predictions.cost, split.lengths),
        ),
    )


def answer_rows(config: EncoderConfig, predictions: Predictions) -> Iterator[dict[str, Any]]:
    """A row for each input: see `answer_row`."""
    said = zip(*decode_logits(config, predictions.logits), strict=True)
    for index, (label, score, shares) in enumerate(said):
        layers = np.flatnonzero(predictions.layer_mask[index]).tolist()
        yield answer_row(index, label, score, shares, layers, float(predictions.cost[index]))
