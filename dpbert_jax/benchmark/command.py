"""Times what skipping is worth, beside the runtimes that a user would else pick.

Prints a card for people, and one line of JSON last.
"""

import json
import logging
import platform
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from dpbert_jax.benchmark.arguments import BenchmarkArguments
from dpbert_jax.benchmark.environment import make_room, own_cores, versions
from dpbert_jax.benchmark.latency import measure_latency
from dpbert_jax.benchmark.peers import Peer, available, write_models
from dpbert_jax.benchmark.plots import check_plot, plot_latency, plot_throughput
from dpbert_jax.benchmark.subjects import load_subject
from dpbert_jax.benchmark.throughput import measure_throughput
from dpbert_jax.flags import parse

logger = logging.getLogger("dpbert_jax.benchmark")


def benchmark(args: BenchmarkArguments) -> dict[str, Any]:
    """Measures, prints, writes what was asked."""
    names, skipped = available(args.peers)
    # Refused before anything is measured.
    if args.plot:
        check_plot(Path(args.plot))
    for name in ("json", "plot"):
        if getattr(args, name):
            make_room(name, Path(getattr(args, name)))
    subject = load_subject(args)
    threads = args.threads or own_cores()
    for name, reason in skipped.items():
        logger.info("Peer %s is skipped: %s.", name, reason)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if names:
            write_models(folder, names, subject.model)
        peers = {}
        for name in names:
            peers[name] = Peer(name, folder, threads)
            stack.callback(peers[name].close)
        if args.data_dir:
            rows, data = measure_throughput(args, subject, peers)
        else:
            rows, data = measure_latency(args, subject, peers), None
    report = {
        "model": args.model_name_or_path,
        "plans": "random, independent" if subject.random_plans else "planner, top_k",
        "data": data,
        "dtype": "bfloat16" if args.bf16 else "float32",
        "threads": threads,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": versions(),
        "skipped_peers": skipped,
        "rows": rows,
    }
    _print_card(report)
    if args.plot:
        title = f"{Path(args.model_name_or_path).name}, {threads} threads, {report['dtype']}"
        if data:
            plot_throughput(Path(args.plot), rows, f"{title}: {data['task']} validation")
        else:
            plot_latency(Path(args.plot), rows, title)
    line = json.dumps(report)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(line)
    return report


def _print_card(report: dict[str, Any]) -> None:
    found = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    about = f"plans: {report['plans']}, {report['dtype']}, {report['threads']} threads"
    print(f"\n{report['model']}, {about}")
    print(f"Python {report['python']}, {found}, {report['device']}")
    if report["data"]:
        data = report["data"]
        print(
            f"{data['task']}: {data['rows']} rows, {data['mean_length']:.1f} tokens on average, "
            f"{data['longest']} at most"
        )
    print()
    extra = ["samples_per_second"] if report["data"] else ["seq_length"]
    head = ["variant", "keep", "batch_size", *extra, "min_ms", "median_ms", "p95_ms"]
    table = [[_cell(row.get(name)) for name in head] for row in report["rows"]]
    widths = [max(map(len, column)) for column in zip(head, *table, strict=True)]
    for row in [head, *table]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print()


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    benchmark(parse(BenchmarkArguments, __doc__))
