"""Time of the planned points beside the dense model: latency at batch 1, throughput packed."""

from typing import Any

import jax
import numpy as np

from dpbert_jax.benchmark.timing import interleaved
from dpbert_jax.data import batches
from dpbert_jax.inference import resolve_rule
from dpbert_jax.inference.executors import INPUTS, Executor
from dpbert_jax.inference.path import DPBertOutput
from dpbert_jax.policies.cost import plan_cost
from dpbert_jax.policies.rule import Rule
from dpbert_jax.study.points import Point, Scorer, run_split
from dpbert_jax.study.sweep_arguments import SweepArguments


def time_points(args: SweepArguments, scorer: Scorer, points: list[Point]) -> None:
    """Adds to each planned point its latency and throughput, and their shares of the dense ones."""
    run = scorer.run
    planned = [point for point in points if point["variant"] in args.plan_rules]
    few = np.linspace(0, len(scorer.split) - 1, min(args.latency_rows, len(scorer.split)))
    split = scorer.split.take(np.unique(few.astype(int)))
    pad = run.teacher.config.encoder.pad_token_id
    rows = [
        {name: batch[name] for name in INPUTS}
        for batch in batches(split, 1, run.args.max_seq_length, pad_token_id=pad)
    ]
    dense = run.teacher.executor("cond")
    skipping = run.model.executor("cond")
    full = resolve_rule(run.teacher.config, 1.0)

    def one_by_one(execute: Executor, rule: Rule) -> list[DPBertOutput]:
        return [jax.device_get(execute(row, rule)) for row in rows]

    def mean_cost(outputs: list[DPBertOutput]) -> float:
        gates = [output.layer_mask[:, run.model.config.stem_layers :] for output in outputs]
        lengths = [int(row["attention_mask"].sum()) for row in rows]
        costs = [plan_cost(run.model.config, *row)[0] for row in zip(gates, lengths, strict=True)]
        return float(np.mean(costs))

    calls: dict[str, Any] = {"dense": lambda: one_by_one(dense, full)}
    costs = {}
    for number, point in enumerate(planned):
        rule = resolve_rule(run.model.config, point["budget"], point["variant"])
        calls[str(number)] = lambda rule=rule: one_by_one(skipping, rule)
        costs[number] = mean_cost(calls[str(number)]())  # off the clock
    found = interleaved(calls, {}, args.repeats, rounds=1)
    for number, point in enumerate(planned):
        taken, reference = found[str(number)], found["dense"]
        point["latency_ms"] = taken["median_ms"] / len(rows)
        point["latency_share"] = taken["min_ms"] / reference["min_ms"]
        point["latency_cost"] = costs[number]

    dense = run.teacher.executor("packed")
    skipping = run.model.executor("packed")
    seconds: dict[int, list[float]] = {number: [] for number in (-1, *range(len(planned)))}
    for repeat in range(args.repeats):
        first = repeat == 0  # compilation stays off the clock
        made = run_split(run, scorer.split, dense, full, warm_up=first)
        seconds[-1].append(made.seconds)
        for number, point in enumerate(planned):
            rule = resolve_rule(run.model.config, point["budget"], point["variant"])
            made = run_split(run, scorer.split, skipping, rule, warm_up=first)
            seconds[number].append(made.seconds)
    for number, point in enumerate(planned):
        point["samples_per_second"] = len(scorer.split) / float(np.median(seconds[number]))
        point["throughput_gain"] = min(seconds[-1]) / min(seconds[number])
