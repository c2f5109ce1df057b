"""Compresses a run's word embeddings to a number of bytes, and trains shortly to heal the model.

After MCUBERT (2024): tokens are clustered by frequency, each cluster's table is a product of two
int8 matrices at a rank of its own, and the ranks lose least where the bytes are given. The folder
that is written is a model's like any other.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from dpbert_jax.compress.arguments import CompressArguments
from dpbert_jax.compress.factorise import Factors, factorise, quantise, token_weights
from dpbert_jax.compress.heal import heal
from dpbert_jax.data.files import text_file
from dpbert_jax.encoder.word_table import table_bytes
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.calibration import calibrate
from dpbert_jax.flags import parse, unused_folder
from dpbert_jax.hub import save_folder
from dpbert_jax.inference.texts import Encoder, read_texts
from dpbert_jax.integrity import update_sums
from dpbert_jax.model import Model
from dpbert_jax.run_folder import HELD_OUT, TRAIN_CONFIG
from dpbert_jax.study.fit import Run, open_run

WORDS = "word_embeddings"


def compress(args: CompressArguments) -> Path:
    """Writes the compressed model; prints what it lost, a card and one JSON line."""
    folder = unused_folder(args.output_dir, "--output_dir")
    run = open_run(args.model_name_or_path)
    encoder, params = run.model.config.encoder, run.model.params
    if run.model.config.calibration is None:
        raise UserError(f"{run.folder} has no thresholds: find them with `eval.py --calibrate`.")
    table = np.asarray(params["embeddings"][WORDS]["embedding"])
    weights = token_weights(_token_ids(args, run), encoder.vocab_size)
    factors = factorise(encoder, table, weights, args.budget(table.nbytes), args.clusters)
    if args.num_train_epochs:
        params, factors = heal(run, factors, args.num_train_epochs)
    model = with_factors(run.model, params, factors)
    if args.num_train_epochs:
        model = _calibrated(model, run)
    save_folder(folder, model.config, model.params, model.tokenizer)
    shutil.copyfile(run.folder / TRAIN_CONFIG, folder / TRAIN_CONFIG)  # its data and its length
    update_sums(folder, [TRAIN_CONFIG])
    found = "found anew on rows held out" if args.num_train_epochs else f"those of {run.folder}"
    print(f"Thresholds: {found}; `eval.py --calibrate` finds them on inputs of yours.")
    _print(args, model, factors, table.nbytes)
    return folder


def with_factors(model: Model, params: dict, factors: Factors) -> Model:
    """The model with other parameters, and the factors, rounded, in place of its word table."""
    encoder = dataclasses.replace(model.config.encoder, compression=factors.compression)
    config = dataclasses.replace(model.config, encoder=encoder)
    embeddings = {**params["embeddings"], WORDS: quantise(factors)}
    return dataclasses.replace(model, config=config, params={**params, "embeddings": embeddings})


def _token_ids(args: CompressArguments, run: Run) -> np.ndarray:
    if args.text_file is None:
        return run.rows.kept.token_ids
    texts = read_texts(text_file(Path(args.text_file)))
    split, _ = Encoder(run.model.tokenizer).encode(texts, run.model.max_seq_length, True)
    return split.token_ids


def _calibrated(model: Model, run: Run) -> Model:
    """With thresholds found anew: stem and embeddings, which plans depend on, have learnt."""
    calibration = calibrate(
        model.config,
        model.params,
        run.rows.held_out,
        inputs=HELD_OUT,
        batch_size=run.args.per_device_eval_batch_size,
        max_seq_length=run.args.max_seq_length,
        length_buckets=run.args.length_buckets,
        dtype=model.dtype,
    )
    return dataclasses.replace(
        model, config=dataclasses.replace(model.config, calibration=calibration)
    )


def _print(args: CompressArguments, model: Model, factors: Factors, before: int) -> None:
    taken = table_bytes(model.config.encoder)
    clusters = zip(factors.compression.sizes, factors.compression.ranks, strict=True)
    print(f"Word embeddings: {taken} bytes of {before} ({taken / before:.3f}).")
    for number, (size, rank) in enumerate(clusters):
        print(f"  cluster {number}: {size} tokens at rank {rank}")
    print(f"Lost of the table's squared norm, by frequency, before healing: {factors.error:.4f}.")
    print(f"Written to {args.output_dir}.")
    row = {
        "bytes": taken,
        "float32_bytes": before,
        **dataclasses.asdict(factors.compression),
        "lost": factors.error,
        "num_train_epochs": args.num_train_epochs,
    }
    print(json.dumps(row))


def main() -> None:
    compress(parse(CompressArguments, __doc__))
