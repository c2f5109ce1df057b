"""Exports a run to PyTorch (Hugging Face), ONNX or StableHLO; with --verify, proves the artifact.

Layers that a plan leaves out are skipped there as well.
"""

import dataclasses
import logging
import shutil
import sys
from pathlib import Path

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.task import load_task_of, with_run_defaults
from dpbert_jax.export.arguments import DEFAULT_BUDGET, ExportArguments
from dpbert_jax.export.formats import FORMATS, Model, load_artifact, write_artifact
from dpbert_jax.export.verify import INT8_TOLERANCE, TOLERANCE, Comparison, verify
from dpbert_jax.flags import parse, unused_folder
from dpbert_jax.hub import load_run
from dpbert_jax.inference import resolve_rule
from dpbert_jax.run_folder import TRAIN_CONFIG, read_train_config

logger = logging.getLogger(__name__)


def export(args: ExportArguments) -> bool:
    """Writes the artifact; False where --verify found it wrong, and it was taken back."""
    chosen = FORMATS[args.format]
    chosen.require(chosen.to_write, f"--format {args.format}")
    if args.verify:
        chosen.require(chosen.to_run, f"--verify of --format {args.format}")
    source, config, params, tokenizer = load_run(args.model_name_or_path)
    is_run = (source / TRAIN_CONFIG).exists()
    length = read_train_config(source)["max_seq_length"] if is_run else None
    config = dataclasses.replace(config, default_budget=_default_budget(args, config))
    # Whoever serves and asks for truncation gets the rows that the run was trained on.
    tokenizer.model_max_length = min(
        length or tokenizer.model_max_length, config.encoder.max_position_embeddings
    )
    model = Model(config, params, tokenizer, args.plan_rule, args.int8, length)
    verifiable = _validation(args, source, model) if args.verify else []
    folder = unused_folder(args.output_dir, "--output_dir")
    if config.planner is None:
        logger.info("%s has no planner: a dense model is exported, with no budget.", source)
    # Nothing lies under the asked name before it is whole, and verified where that was asked.
    partial = folder.with_name(folder.name + ".partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:  # a folder of that name may be anybody's: it is not removed
        raise UserError(
            f"--output_dir {folder} cannot be written: {partial}: {error.strerror}."
        ) from error
    try:
        write_artifact(args.format, partial, model)
        agrees = True
        for name, split, spec, length in verifiable:
            made = verify(load_artifact(args.format, partial, model), model, split, spec, length)
            _print(name, made, model)
            agrees &= all(comparison.agrees for comparison in made)
        if agrees:
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if agrees:
        print(f"Written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return agrees


def _default_budget(args: ExportArguments, config: DPBertConfig) -> float | None:
    """The budget of calls that name none; None for a dense model.

    Raises:
        UserError: such a call could not be answered.
    """
    if config.planner is None:
        if args.default_budget is not None:
            raise UserError("--default_budget is for models with a planner; this one has none.")
        return None
    named = (args.default_budget, config.default_budget)
    budget = next((budget for budget in named if budget is not None), DEFAULT_BUDGET)
    where = f"--default_budget is {budget}{' unless given' if named == (None, None) else ''}"
    in_torch = args.format == "huggingface"  # the rule is an argument there, `threshold` if unnamed
    if in_torch and config.calibration is None and budget != 1:
        raise UserError(
            f"{where}, for which this model has no thresholds: find them with `eval.py "
            "--calibrate SPLIT`, or give --default_budget 1."
        )
    try:
        resolve_rule(config, budget, args.plan_rule)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return budget


def _validation(args: ExportArguments, source: Path, model: Model) -> list:
    """Name, tokenised rows, task and length of each validation split."""
    found = with_run_defaults(
        EvalArguments(str(source), data_dir=args.data_dir, validation_file=args.validation_file),
        source,
    )
    task = load_task_of(found, model.config)
    length = found.max_seq_length or model.config.encoder.max_position_embeddings
    return [
        (
            name,
            tokenize(task.splits[name].head(args.verify_samples), model.tokenizer, length),
            task.spec,
            length,
        )
        for name in task.spec.validation_splits
    ]


def _print(name: str, made: list[Comparison], model: Model) -> None:
    print(f"{name}: {made[0].rows} inputs against this library in float32")
    print(
        "budget  max |logits|  plans equal  near ties  by batch: labels  plans   score (here)    "
        "layers      ms  of full"
    )
    for row in made:
        scores = "      -        "
        if row.score is not None:
            scores = f"{row.score:.4f} ({row.reference_score:.4f})"
        print(
            f"{row.budget:6.3g}  {row.max_difference:12.1e}  {row.plans_equal:11.1%}  "
            f"{row.near_ties:9d}  {row.labels_by_batch:16d}  {row.plans_by_batch:5d}  "
            f"{scores}  {row.layers:8.2f}  {row.milliseconds:6.2f}  "
            f"{row.milliseconds / made[0].milliseconds:7.2f}"
            f"{'' if row.agrees else '  MISMATCH'}"
        )
    if not all(row.agrees for row in made):
        allowed = (
            f"a score that is {INT8_TOLERANCE} lower" if model.int8 else f"{TOLERANCE} in logits"
        )
        print(
            f"error: the artifact disagrees (allowed: {allowed}, and plans that differ on near "
            "ties only); it is removed.",
            file=sys.stderr,
        )


def main() -> None:
    if not export(parse(ExportArguments, __doc__)):
        sys.exit(1)
