"""Answers texts: label, probabilities, layers and cost, a JSON line each, in their order.

The texts are the rows of a table, in the columns that the model was trained on, the lines of a
plain file or of standard input, or flags. Nothing that only training needs is imported.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dpbert_jax.data import Columns, load_task
from dpbert_jax.data.files import text_file, text_on_each
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.answer_files import (
    answer_row,
    check_answer_file,
    make_room,
    write_answer_rows,
)
from dpbert_jax.evaluation.task import classes_of, recorded_columns
from dpbert_jax.flags import flag, list_flag, parse
from dpbert_jax.model import Model

logger = logging.getLogger(__name__)

STANDARD_INPUT = "-"
PLAIN_FILE = ".txt"


@dataclass(frozen=True)
class PredictArguments:
    model_name_or_path: str = field(
        metadata={
            "help": "A run folder of train.py, or any fine-tuned classifier; may be given "
            "first, without flag."
        }
    )
    text: list[str] | None = flag(None, "Texts to answer.")
    text_pair: list[str] | None = flag(
        None, "Second segments, one for each --text, where the task has pairs."
    )
    input_file: str | None = flag(
        None,
        "Texts to answer: csv, tsv, json, jsonl or parquet, in the run's text columns; txt, one "
        "text a line; -, lines of standard input.",
    )
    output_file: str | None = flag(
        None,
        "Write the answers here, a row each; csv, tsv or jsonl. Default: JSON lines to standard "
        "output.",
    )
    budget: list[float] = list_flag([1.0], "Share of the dense FLOPs to spend, in (0, 1]; one.")
    plan_rule: str = flag(
        "threshold", "threshold: depth varies with the input; top_k: the same for every input."
    )
    max_length: int | None = flag(
        None,
        "Longer texts are cut to so many tokens. Default: the run's, or the positions.",
    )
    text_column_name: str | None = flag(
        None, "Column of the texts in that file. Default: the training file's."
    )
    text_pair_column_name: str | None = flag(
        None, "Column of the second text of a pair. Default: the training file's."
    )

    def __post_init__(self) -> None:
        if (self.text is None) == (self.input_file is None):
            raise UserError("Give the texts either with --input_file or with --text.")
        if self.text_pair is not None and self.text is None:
            raise UserError("--text_pair goes with --text: those of a file are a column of it.")
        if len(self.budget) != 1:
            raise UserError("Texts are answered at one --budget, not at several.")
        for name in ("text_column_name", "text_pair_column_name"):
            if getattr(self, name) and not self.has_columns:
                raise UserError(f"--{name} is for files with columns: csv, tsv, json and the like.")
        check_answer_file(self.output_file)

    @property
    def has_columns(self) -> bool:
        """Whether the texts come from a table."""
        return self.input_file not in (None, STANDARD_INPUT) and not self.is_plain

    @property
    def is_plain(self) -> bool:
        """Whether they are the lines of a file."""
        return Path(self.input_file or "").suffix.lower() == PLAIN_FILE


def predict(args: PredictArguments) -> None:
    """Answers the texts, to standard output or `--output_file`.

    Raises:
        UserError: a text cannot be read (none is left out: an answer's number would no longer be
            its text's), the model takes pairs and these are none, or the output cannot be written.
    """
    if args.output_file:
        make_room(Path(args.output_file))
    model = Model.from_pretrained(args.model_name_or_path)
    texts, pairs = _texts(args, model)
    predictions = model.predict(
        texts,
        pairs,
        budget=args.budget[0],
        plan_rule=args.plan_rule,
        max_length=args.max_length,
    )
    rows = [
        answer_row(index, each.label, each.score, each.probabilities, each.layers, each.cost)
        | {"truncated": each.truncated}
        for index, each in enumerate(predictions)
    ]
    if args.output_file:
        write_answer_rows(Path(args.output_file), rows)
        logger.info("%d answers are in %s.", len(rows), args.output_file)
        return
    for row in rows:
        print(json.dumps(row))  # ASCII, whatever standard output is encoded in


def _texts(args: PredictArguments, model: Model) -> tuple[list[str], list[str] | None]:
    """The texts, and their second segments where they are pairs."""
    assert model.folder is not None
    trained_on = recorded_columns(model.folder)
    if args.has_columns:
        task = load_task(
            validation_file=args.input_file,
            columns=Columns(args.text_column_name, args.text_pair_column_name),
            trained_on=trained_on,
            model=classes_of(model.config.encoder),
            labels="unread",
        )
        rows = task.splits["validation"]
        return rows.text_a, rows.text_b
    if trained_on and trained_on.text_pair and args.text_pair is None:
        raise UserError(
            f"The model was trained on pairs of texts, columns {trained_on.text!r} and "
            f"{trained_on.text_pair!r}: give a file with these, or --text and --text_pair."
        )
    if trained_on and not trained_on.text_pair and args.text_pair is not None:
        raise UserError("--text_pair: the model was trained on single texts.")
    if args.text is not None:
        return args.text, args.text_pair
    if args.is_plain:
        return text_file(Path(args.input_file or "")), None
    lines = list(text_on_each("standard input", sys.stdin.buffer))
    if not lines:
        raise UserError("Standard input is empty: there is no text to answer.")
    return lines, None


def main() -> None:
    predict(parse(PredictArguments, __doc__))
