"""Exports a run to PyTorch (Hugging Face), ONNX or StableHLO; with --verify, proves the artifact.

Layers that a plan leaves out are skipped there as well.
"""

import sys
from pathlib import Path

from dpbert_jax.data import tokenize
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.task import load_task_of, with_run_defaults
from dpbert_jax.export.arguments import ExportArguments
from dpbert_jax.export.formats import ExportOptions, Format, load_artifact
from dpbert_jax.export.verify import INT8_TOLERANCE, TOLERANCE, Comparison, verify
from dpbert_jax.export_formats import export_format
from dpbert_jax.flags import parse
from dpbert_jax.model import Model


def export(args: ExportArguments) -> bool:
    """Writes the artifact; False where --verify found it wrong, and it was taken back."""
    chosen: Format = export_format(args.format)
    options = args.options
    if args.verify:
        chosen.require(chosen.to_run, f"--verify of --format {args.format}")
    model = Model.from_pretrained(args.model_name_or_path)
    verifiable = _validation(args, model) if args.verify else []

    def agrees(folder: Path, written: Model) -> bool:
        """Whether the artifact does what the model does; each split's figures are printed."""
        good = True
        for name, split, spec, length in verifiable:
            call = load_artifact(chosen, folder, written, options)
            made = verify(call, written, options, split, spec, length)
            _print(name, made, options)
            good &= all(comparison.agrees for comparison in made)
        return good

    folder = Path(args.output_dir)
    whole = chosen.export(
        model,
        folder,
        **options._asdict(),
        default_budget=args.default_budget,
        proof=agrees,
    )
    if whole:
        print(f"Written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return whole


def _validation(args: ExportArguments, model: Model) -> list:
    """Name, tokenised rows, task and length of each validation split."""
    source = model.folder
    assert source is not None
    found = with_run_defaults(
        EvalArguments(str(source), data_dir=args.data_dir, validation_file=args.validation_file),
        source,
    )
    task = load_task_of(found, model.config)
    length = found.max_seq_length or model.config.encoder.longest_input
    return [
        (
            name,
            tokenize(task.splits[name].head(args.verify_samples), model.tokenizer, length),
            task.spec,
            length,
        )
        for name in task.spec.validation_splits
    ]


def _print(name: str, made: list[Comparison], options: ExportOptions) -> None:
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
            f"a score that is {INT8_TOLERANCE} lower" if options.int8 else f"{TOLERANCE} in logits"
        )
        print(
            f"error: the artifact disagrees (allowed: {allowed}, and plans that differ on near "
            "ties only); it is removed.",
            file=sys.stderr,
        )


def main() -> None:
    if not export(parse(ExportArguments, __doc__)):
        sys.exit(1)
