"""Time of points beside the dense model: latency at batch 1, throughput packed."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dpbert_jax.benchmark.timing import interleaved
from dpbert_jax.data import INPUTS, batches
from dpbert_jax.inference import resolve_rule
from dpbert_jax.inference.executors import Executor
from dpbert_jax.inference.path import Output
from dpbert_jax.study.scorer import Scorer, Variant, run_split
from dpbert_jax.study.sweep_arguments import SweepArguments


def time_points(args: SweepArguments, scorer: Scorer, variants: list[Variant]) -> None:
    """Adds to each point its latency and throughput, and their shares of the dense ones."""
    teacher = scorer.run.teacher
    dense = Variant({}, teacher.executor, resolve_rule(teacher.config, 1.0))
    _time_latency(args, scorer, dense, variants)
    _time_throughput(args, scorer, dense, variants)


def _time_latency(
    args: SweepArguments, scorer: Scorer, dense: Variant, variants: list[Variant]
) -> None:
    """Rows one by one, spread over the split."""
    run, split = scorer.run, scorer.split
    few = np.linspace(0, len(split) - 1, min(args.latency_rows, len(split)))
    chosen = np.unique(few.astype(int))
    pad = run.teacher.config.encoder.pad_token_id
    made = list(batches(split.take(chosen), 1, run.args.max_seq_length, pad_token_id=pad))
    lengths = [int(batch["attention_mask"].sum()) for batch in made]

    def asked(variant: Variant) -> Callable[[], list[Output]]:
        execute = executors.setdefault(variant.executor, variant.executor("cond"))
        rules = [variant.rule.of_rows(chosen[batch["indices"]]) for batch in made]
        rows = [{name: batch[name] for name in INPUTS} for batch in made]
        return lambda: [
            jax.device_get(execute(row, rule)) for row, rule in zip(rows, rules, strict=True)
        ]

    executors: dict[Any, Executor] = {}
    calls = {"dense": asked(dense)}
    for number, variant in enumerate(variants):
        calls[str(number)] = asked(variant)
        outputs = calls[str(number)]()  # off the clock
        execute = executors[variant.executor]
        costs = [
            execute.cost(output, np.arange(1), np.array([length]))[0]
            for output, length in zip(outputs, lengths, strict=True)
        ]
        depth = outputs[0].layer_mask.shape[1] / run.model.config.encoder.num_hidden_layers
        variant.point["latency_cost"] = float(np.mean(costs)) * depth
    found = interleaved(calls, {}, args.repeats, rounds=1)
    for number, variant in enumerate(variants):
        taken, reference = found[str(number)], found["dense"]
        variant.point["latency_ms"] = taken["median_ms"] / len(made)
        variant.point["latency_share"] = taken["min_ms"] / reference["min_ms"]


def _time_throughput(
    args: SweepArguments, scorer: Scorer, dense: Variant, variants: list[Variant]
) -> None:
    every = [dense, *variants]
    executors = {each: each("packed") for each in {variant.executor for variant in every}}
    seconds = np.zeros((len(every), args.repeats))
    for repeat in range(args.repeats):
        for number, variant in enumerate(every):
            execute = executors[variant.executor]
            made = run_split(scorer.run, scorer.split, execute, variant.rule, warm_up=repeat == 0)
            seconds[number, repeat] = made.seconds  # without compilation
    for variant, taken in zip(variants, seconds[1:], strict=True):
        variant.point["samples_per_second"] = len(scorer.split) / float(np.median(taken))
        variant.point["throughput_gain"] = float(seconds[0].min() / taken.min())
