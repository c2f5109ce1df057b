"""Real sentences of real lengths, from token ids to logits: samples a second."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from dpbert_jax.benchmark.arguments import BenchmarkArguments
from dpbert_jax.benchmark.peers import Peer
from dpbert_jax.benchmark.subjects import Batch, Subject
from dpbert_jax.benchmark.timing import interleaved
from dpbert_jax.data import INPUTS, TokenizedSplit, batches, chunks, load_task, tokenize
from dpbert_jax.hub import load_tokenizer, resolve_folder
from dpbert_jax.inference import Executor
from dpbert_jax.inference.packed import CHUNK_ROWS

Row = dict[str, Any]
MAX_SEQ_LENGTH = 128


def measure_throughput(
    args: BenchmarkArguments, subject: Subject, peers: Mapping[str, Peer]
) -> tuple[list[Row], dict[str, Any]]:
    """A row for each batch size, variant and number of layers kept; and the data's lengths.

    Each pads as it would in practice: peers to the longest row of a batch in the data's order, and
    once more with the rows sorted by length; `cond`, `chunked` and `masked` by length bucket;
    `packed` not at all, whole chunks at once, whatever the batch size.
    """
    task = load_task(data_dir=args.data_dir)
    name = task.spec.validation_splits[0]
    # BERT's vocabulary, where the model has none.
    tokenizer = subject.model.tokenizer or load_tokenizer(resolve_folder("minilm"))
    split = tokenize(task.splits[name], tokenizer, MAX_SEQ_LENGTH)
    executors = {name: subject.model.executor(name) for name in args.executors}
    pad = subject.model.config.encoder.pad_token_id
    rows = []
    for batch_size in args.batch_sizes:
        calls, about = {}, {}
        for name, execute in executors.items():
            if execute.packs and batch_size != max(args.batch_sizes):
                continue
            size = CHUNK_ROWS if execute.packs else batch_size
            made = chunks if execute.packs else batches
            passes = list(made(split, size, MAX_SEQ_LENGTH, pad_token_id=pad))
            for keep in [subject.layers] if name == "masked" else subject.keeps:
                label = f"{name} {keep}"
                calls[label] = partial(_whole_split, execute, subject, passes, keep, args.seed)
                about[label] = {"variant": name, "keep": keep, "batch_size": size}
        beside = {}
        for name, peer in peers.items():
            for order, sort in (("in order", False), ("sorted", True)):
                beside[f"{name}, {order}"] = (peer, list(_padded(split, batch_size, sort, pad)))
                about[f"{name}, {order}"] = {
                    "variant": f"{name}, {order}",
                    "keep": subject.layers,
                    "batch_size": batch_size,
                }
        found = interleaved(calls, beside, args.repeats)
        for label, figures in found.items():
            rate = 1000 * len(split) / figures["median_ms"]
            best = 1000 * len(split) / figures["min_ms"]
            rates = {"samples_per_second": rate, "best_samples_per_second": best}
            rows.append({**about[label], **figures, **rates})
    lengths = split.lengths
    about_data = {
        "task": task.spec.name,
        "rows": len(split),
        "mean_length": float(lengths.mean()),
        "longest": int(lengths.max()),
    }
    return rows, about_data


def _whole_split(
    execute: Executor, subject: Subject, passes: list[Batch], keep: int, seed: int
) -> None:
    for number, batch in enumerate(passes):
        plan = subject.plan(len(batch["input_ids"]), keep, seed + number)
        np.asarray(execute(batch, subject.rule(keep), plan).logits)


def _padded(
    split: TokenizedSplit, batch_size: int, sort: bool, pad_token_id: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches padded to their longest row, as a Hugging Face data collator makes them."""
    order = np.argsort(split.lengths, kind="stable") if sort else np.arange(len(split))
    for start in range(0, len(order), batch_size):
        part = split.take(order[start : start + batch_size])
        longest = int(part.lengths.max())
        (batch,) = batches(part, len(part), longest, pad_token_id=pad_token_id)
        yield {name: batch[name] for name in INPUTS}
