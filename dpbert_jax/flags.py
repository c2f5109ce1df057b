"""What the command-line scripts share: flags into a dataclass, user errors into exit code 2."""

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from dpbert_jax.errors import UserError
from dpbert_jax.run_glue import without_run_glue

MODEL = "model_name_or_path"
# Flags that once had another name, and what is given in their place.
RENAMED = {
    "run_dir": (MODEL, "give the run first, without a flag, or as --model_name_or_path"),
    "model": (MODEL, "give the model first, without a flag, or as --model_name_or_path"),
    "budgets": ("budget", "give --budget and the numbers with blanks between: --budget 1.0 0.6"),
    "output": ("output_dir", "give --output_dir"),
    "data": ("data_dir", "give --data_dir"),
}


def flag(default: Any, text: str) -> Any:
    """A field of an arguments dataclass: a flag with its default and its line of help."""
    return dataclasses.field(default=default, metadata={"help": text})


def list_flag(default: Sequence[Any], text: str) -> Any:
    """The same of a flag with several values, blanks between."""
    return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})


def parse(
    arguments: type,
    description: str | None,
    argv: Sequence[str] | None = None,
    positional: str = MODEL,
    script: str | None = None,
) -> Any:
    """Parses flags into the dataclass; argparse itself exits with 2 on what it cannot read.

    Args:
        script: train.py or eval.py, whose flags are run_glue's: it answers those that it lacks.
        positional: the flag whose value may also stand first, bare.

    Raises:
        UserError: a flag has another name now, or is run_glue's.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if script:
        argv = without_run_glue(argv, script)
    if argv and not argv[0].startswith("-"):
        argv.insert(0, f"--{positional}")
    _answer_renamed(argv, {field.name for field in dataclasses.fields(arguments)})
    parser = HfArgumentParser(arguments, description=description, allow_abbrev=False)  # type: ignore[arg-type]
    # Unknown flags come first: a misspelt one is seldom what the dataclass finds missing.
    return arguments(**vars(parser.parse_args(argv)))


def _answer_renamed(argv: Sequence[str], names: set[str]) -> None:
    for part in argv:
        old = part.removeprefix("--").partition("=")[0].replace("-", "_")
        new, answer = RENAMED.get(old, ("", ""))
        if part.startswith("--") and old not in names and new in names:
            raise UserError(f"There is no --{old}: {answer}.")


def unused_folder(path: str, flag_name: str) -> Path:
    """The folder that a flag names, which must not hold anything yet.

    Raises:
        UserError: it does, or it is a file.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{flag_name} {folder} is in use: name a folder that is new or empty.")
    return folder


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's main function.

    A user's mistake is one sentence and exit code 2, Ctrl-C is exit code 130.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:  # orbax's import may have set up one of its own
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("dpbert_jax").setLevel(logging.INFO)
    # Orbax logs the traceback of what it raises too; what it raises is told in a sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
