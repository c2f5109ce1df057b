"""Times a training step beside a plain PyTorch loop: same weights, rows, batch size and threads.

Prints a card for people, and one line of JSON last.
"""

import dataclasses
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpbert_jax.benchmark import torch_training
from dpbert_jax.benchmark.environment import make_room, own_cores, versions
from dpbert_jax.benchmark.peers import Peer, available
from dpbert_jax.config import AdapterConfig, Calibration, DPBertConfig, EncoderConfig, PlannerConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.data import TokenizedSplit, batches, load_task, tokenize
from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, parse
from dpbert_jax.hub import load_params, load_tokenizer, resolve_folder
from dpbert_jax.hub.folders import save_weights
from dpbert_jax.policies.dpbert import DPBert, Params, init_params
from dpbert_jax.training.objective import threshold_grid
from dpbert_jax.training.optimizer import make_optimizer
from dpbert_jax.training.stage import STAGES, Stage, loss_of
from dpbert_jax.training.step import Step, TrainState, TrainStep, create_state

REFERENCE = "torch, dynamic padding"
MEGABATCHES = 50  # the Trainer's group_by_length sorts within so many batches
ANY_CALIBRATION = Calibration((0.4, 1.0), (1.0, -6.0))  # plans do not change a stage's time

Batch = dict[str, np.ndarray]
Timed = Callable[[Batch], float]  # takes a step, tells its seconds


@dataclass(frozen=True)
class TrainingArguments:
    model_name_or_path: str = flag(
        "minilm",
        "Pretrained BERT: a hub id, a folder, or `minilm`; may be given first, without flag.",
    )
    task_name: str | None = flag(
        None, "A GLUE task, or `docstrings` or `documents` (built in, offline)."
    )
    data_dir: str | None = flag(None, "Folder of a GLUE task's official TSV files.")
    per_device_train_batch_size: int = flag(32, "Rows of a batch.")
    max_seq_length: int = flag(128, "Longer inputs are cut to so many tokens.")
    steps: int = flag(40, "Steps of a pass; every variant passes over the same rows.")
    repeats: int = flag(5, "Timed passes.")
    threads: int | None = flag(None, "Threads of PyTorch. Default: the cores of this process.")
    seed: int = flag(0, "Of the rows, their order, new parameters and dropout.")
    json: str | None = flag(None, "Write the figures here.")

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "max_seq_length", "steps", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1.")
        if self.threads is not None and self.threads < 1:
            raise UserError("--threads must be at least 1.")
        if self.seed < 0:
            raise UserError("--seed must not be negative.")


def benchmark_training(args: TrainingArguments) -> dict[str, Any]:
    """Measures, prints, writes what was asked."""
    if args.json:
        make_room("json", Path(args.json))
    names, skipped = available(["torch"])
    source = resolve_folder(args.model_name_or_path)
    task = load_task(task_name=args.task_name, data_dir=args.data_dir)
    encoder = dataclasses.replace(
        read_config(source).encoder,
        num_labels=task.spec.num_labels,
        labels=task.spec.labels,
        problem_type=task.spec.problem_type,
    )
    if encoder.is_regression:
        raise UserError(f"{task.spec.name} has scores for labels: name a task with classes.")
    if args.max_seq_length > encoder.longest_input:
        raise UserError(
            f"--max_seq_length {args.max_seq_length}: the model has positions for "
            f"{encoder.longest_input} tokens."
        )
    config = DPBertConfig(encoder)
    params = load_params(source, config, fresh=("head",), seed=args.seed)
    split = some_rows(task.splits["train"], load_tokenizer(source), args)
    variants: dict[str, tuple[Timed, list[Batch]]] = {
        f"ours, {stage.name}": (
            _timed(*our_step(stage, config, params, args)),
            our_batches(split, stage, encoder, args),
        )
        for stage in STAGES
    }
    threads = args.threads or own_cores()
    with ExitStack() as stack:
        if names:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            save_weights(folder, config, params)
            peer = Peer("torch-training", folder, threads)
            stack.callback(peer.close)
            timed = partial(_peer_seconds, peer)
            for name, made in torch_batches(split, encoder.pad_token_id, args).items():
                variants[name] = (timed, made)
        rows = measure(variants, args.repeats)
    report = {
        "model": args.model_name_or_path,
        "task": task.spec.name,
        "rows": len(split),
        "mean_length": float(split.lengths.mean()),
        "batch_size": args.per_device_train_batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "threads": threads,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": versions(),
        "skipped_peers": skipped,
        "variants": rows,
    }
    _print_card(report)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return report


def some_rows(examples: Any, tokenizer: Any, args: TrainingArguments) -> TokenizedSplit:
    """The rows of a pass: drawn from the training split, a whole number of batches."""
    every = tokenize(examples, tokenizer, args.max_seq_length)
    size = args.per_device_train_batch_size
    count = min(args.steps, len(every) // size) * size
    if not count:
        raise UserError(f"There are {len(every)} training rows, fewer than a batch of {size}.")
    return every.take(np.random.default_rng(args.seed).permutation(len(every))[:count])


def our_batches(
    split: TokenizedSplit, stage: Stage, encoder: EncoderConfig, args: TrainingArguments
) -> list[Batch]:
    """The batches of the training loop; with a teacher's logits where the stage needs them."""
    size, pad = args.per_device_train_batch_size, encoder.pad_token_id
    every = batches(split, size, args.max_seq_length, pad_token_id=pad, seed=args.seed)
    made = list(every)
    if stage.needs_teacher:
        for batch in made:
            batch["teacher_logits"] = np.zeros((size, encoder.num_labels), np.float32)
    return made


def torch_batches(
    split: TokenizedSplit, pad_token_id: int, args: TrainingArguments
) -> dict[str, list[Batch]]:
    """Random batches padded to their longest row, as a data collator makes them, and grouped."""
    size = args.per_device_train_batch_size
    shuffled = np.arange(len(split))  # drawn at random already
    grouped = [
        part[np.argsort(-split.lengths[part], kind="stable")]
        for part in np.split(shuffled, range(MEGABATCHES * size, len(split), MEGABATCHES * size))
    ]
    padded = partial(_padded, split, pad_token_id)
    return {
        REFERENCE: list(padded(shuffled, size, 1)),
        "torch, dynamic padding to a multiple of 8": list(padded(shuffled, size, 8)),
        "torch, grouped by length": list(padded(np.concatenate(grouped), size, 1)),
    }


def _padded(
    split: TokenizedSplit, pad_token_id: int, order: np.ndarray, size: int, multiple: int
) -> Iterator[Batch]:
    for rows in order.reshape(-1, size):
        part = split.take(rows)
        longest = -(-int(part.lengths.max()) // multiple) * multiple
        yield next(batches(part, size, longest, pad_token_id=pad_token_id))


def our_step(
    stage: Stage, config: DPBertConfig, params: Params, args: TrainingArguments
) -> tuple[Step, TrainState]:
    """The training step of `train.py`, and the state that its optimizer starts from."""
    if stage.needs_planner:
        adapters = AdapterConfig() if stage.needs_adapters else None
        config = DPBertConfig(config.encoder, PlannerConfig(), ANY_CALIBRATION, adapters=adapters)
        parts = ("planner", "adapters") if adapters else ("planner",)
        params = {**params, **init_params(config, args.seed, parts)}
    optimizer = make_optimizer(
        params,
        frozen=stage.frozen(config),
        num_steps=torch_training.NUM_STEPS,
        learning_rate=torch_training.LEARNING_RATE,
        planner_learning_rate=1e-2,
        adapter_learning_rate=1e-3,
        weight_decay=torch_training.WEIGHT_DECAY,
        warmup_ratio=0.0,
        max_grad_norm=torch_training.MAX_GRAD_NORM,
    )
    step = TrainStep(
        partial(loss_of, stage, DPBert(config)),
        optimizer,
        num_steps=torch_training.NUM_STEPS,
        accumulation=1,
        seed=args.seed,
        devices=jax.local_devices()[:1],
    )
    return partial(step, thresholds=threshold_grid(config)), create_state(params, optimizer)


def _timed(step: Step, state: TrainState) -> Timed:
    """The step as a call that keeps its state."""

    def timed(batch: Batch) -> float:
        nonlocal state
        began = time.perf_counter()
        state, _ = step(state, batch, 0)
        return time.perf_counter() - began

    return timed


def _peer_seconds(peer: Peer, batch: Batch) -> float:
    return peer.run([batch])[1][0]


def measure(
    variants: dict[str, tuple[Timed, list[Batch]]], repeats: int
) -> dict[str, dict[str, Any]]:
    """Variants take turns, step by step, so that a machine that slows down slows all.

    Untimed steps at every length come first: `first_steps_seconds`, which holds the compilation.
    Throughput adds up every step's median over the passes, `best_` its minimum.
    """
    first = {}
    for name, (timed, made) in variants.items():
        shapes = {batch["input_ids"].shape: batch for batch in made}.values()
        first[name] = sum(timed(batch) for batch in shapes)
        timed(made[0])
    steps = max(len(made) for _, made in variants.values())
    seconds = {name: np.zeros((repeats, steps)) for name in variants}
    for repeat in range(repeats):
        for step in range(steps):
            for name, (timed, made) in variants.items():
                seconds[name][repeat, step] = timed(made[step])
    found = {}
    for name, (_, made) in variants.items():
        slots = sum(batch["input_ids"].size for batch in made)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in made)
        examples = sum(len(batch["input_ids"]) for batch in made)
        found[name] = {
            "examples_per_second": examples / float(np.median(seconds[name], axis=0).sum()),
            "best_examples_per_second": examples / float(seconds[name].min(axis=0).sum()),
            "median_step_ms": 1000 * float(np.median(seconds[name])),
            "min_step_ms": 1000 * float(seconds[name].min()),
            "padding_share": 1 - tokens / slots,
            "first_steps_seconds": first[name],
        }
    for row in found.values():
        for best in ("", "best_"):
            rate = f"{best}examples_per_second"
            against = found.get(REFERENCE)
            row[f"{best}ratio"] = row[rate] / against[rate] if against else None
    return found


def _print_card(report: dict[str, Any]) -> None:
    found = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    print(
        f"\n{report['model']}, {report['task']}: {report['rows']} rows, "
        f"{report['mean_length']:.1f} tokens on average, batches of {report['batch_size']}, "
        f"{report['threads']} threads"
    )
    print(f"Python {report['python']}, {found}, {report['device']}\n")
    for name, why in report["skipped_peers"].items():
        print(f"{name} is skipped: {why}")
    print("examples/s  x torch   median ms     min ms  padding  first s    variant")
    for name, row in report["variants"].items():
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(
            f"{row['examples_per_second']:10.1f}{ratio:>9}{row['median_step_ms']:12.1f}"
            f"{row['min_step_ms']:11.1f}{row['padding_share']:9.2f}"
            f"{row['first_steps_seconds']:11.1f}  {name}"
        )
    print()


def main() -> None:
    benchmark_training(parse(TrainingArguments, __doc__))
