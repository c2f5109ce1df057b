"""Loads servers with requests, and reports what came of them.

Several servers are loaded in turns, load by load, so that a machine that slows down slows all. With
--hold_p95_ms the highest rate is searched at which 95 % are answered within so many milliseconds.
"""

import asyncio
import json
import logging
import urllib.request
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dpbert_jax.benchmark.environment import make_room
from dpbert_jax.benchmark.plots import check_plot
from dpbert_jax.data import Columns, TaskData, classes_of_model, load_task
from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, parse
from dpbert_jax.load.plot import plot_traffic
from dpbert_jax.load.report import report_of
from dpbert_jax.load.traffic import ClosedLoop, OpenLoop, Traffic, drive
from dpbert_jax.serve.simulate import bursty_arrivals, poisson_arrivals

logger = logging.getLogger(__name__)

DOUBLING, NARROW = 2.0, 1.07  # steps of the search for a rate, and where it ends


@dataclass(frozen=True)
class LoadTestArguments:
    url: list[str] = field(
        metadata={"help": "Servers to load, http://HOST:PORT each; one may be given without flag."}
    )
    rate: list[float] | None = flag(
        None, "Requests a second, at random times; several are tried one after the other."
    )
    input_file: str | None = flag(
        None, "Texts: csv, tsv, json, jsonl or parquet; answers are scored where it has labels."
    )
    data_dir: str | None = flag(None, "A GLUE folder, whose dev rows are sent and scored.")
    text_column_name: str | None = flag(None, "Column of the texts in --input_file.")
    text_pair_column_name: str | None = flag(None, "Column of the second text of a pair.")
    label_column_name: str | None = flag(None, "Column of the labels.")
    connections: list[int] | None = flag(
        None,
        "In place of --rate: so many clients, each of which asks again once it has an answer; "
        "several numbers are tried one after the other.",
    )
    seconds: float = flag(30.0, "Length of each stream.")
    burst_rate: float | None = flag(
        None, "Requests a second in bursts, which alternate with --rate. Default: no bursts."
    )
    burst_seconds: float = flag(5.0, "Mean length of a burst, and of the calm between two.")
    budget: list[float] | None = flag(None, "Of all requests; one. Default: the server's.")
    hold_p95_ms: float | None = flag(
        None, "Search for the highest rate held, from --rate up; streams of --seconds each."
    )
    rounds: int = flag(1, "Repeat all streams so often.")
    hostile: float = flag(
        0.0, "Share of further requests that are to be refused, or hard to answer."
    )
    api_key: str | None = flag(None, "Bearer token of the servers.")
    seed: int = flag(0, "Of arrivals and of the texts drawn.")
    json: str | None = flag(None, "Write the figures here, a list with an object for each stream.")
    plot: str | None = flag(
        None, "Draw load, latency and budget of each server's last stream: png, pdf or svg."
    )

    def __post_init__(self) -> None:
        if (self.input_file is None) == (self.data_dir is None):
            raise UserError("Name the texts: either --input_file or --data_dir.")
        if (self.rate is None) == (self.connections is None):
            raise UserError("Name the load: either --rate or --connections.")
        if min(self.loads) <= 0 or self.seconds <= 0 or self.burst_seconds <= 0 or self.rounds < 1:
            raise UserError(
                "--rate, --connections, --seconds, --burst_seconds and --rounds must be above 0."
            )
        if self.budget is not None and len(self.budget) != 1:
            raise UserError("Requests are sent at one --budget, not at several.")
        if not 0 <= self.hostile <= 1:
            raise UserError(f"--hostile is {self.hostile}, but is a share: 0 to 1.")
        if self.hold_p95_ms is not None and (
            self.rate is None or len(self.rate) > 1 or self.burst_rate is not None
        ):
            raise UserError("--hold_p95_ms begins at one --rate, and has no bursts.")
        if self.rate is None and self.burst_rate is not None:
            raise UserError("--burst_rate alternates with --rate: name that.")
        if self.json:
            make_room("json", Path(self.json))
        if self.plot:
            check_plot(Path(self.plot))

    @property
    def loads(self) -> list[float]:
        """The rates, or the numbers of connections."""
        return [float(load) for load in self.rate or self.connections or ()]


def load_test(args: LoadTestArguments) -> list[dict[str, Any]]:
    """Runs all streams; what each met, in their order.

    Raises:
        UserError: a server does not answer, or the texts cannot be read.
    """
    tasks = {url: _rows_for(args, url) for url in args.url}
    found: list[dict[str, Any]] = []
    drawn: dict[str, Traffic] = {}  # the last stream of each server

    def run(url: str, load: float, seed: int) -> dict[str, Any]:
        traffic = _stream(args, url, load, tasks[url], seed)
        report = report_of(traffic, tasks[url], args.seconds)
        drawn[url] = traffic
        found.append(report)
        print(json.dumps(report), flush=True)
        return report

    def holds(url: str, rate: float) -> bool:
        p95 = run(url, rate, args.seed + len(found))["p95_ms"]
        return p95 is not None and p95 <= args.hold_p95_ms

    for turn in range(args.rounds):
        if args.hold_p95_ms is None:
            for number, load in enumerate(args.loads):
                for url in args.url:  # all of them get the same texts at the same times
                    run(url, load, args.seed + turn * len(args.loads) + number)
            continue
        for url in args.url:
            held = {"url": url, "held": _highest_held(partial(holds, url), args.loads[0])}
            print(json.dumps(held), flush=True)
            found.append(held)
    if args.plot:
        plot_traffic(Path(args.plot), list(drawn.values()), args.seconds)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _highest_held(holds: Any, rate: float) -> float:
    """The highest rate that is held, within `NARROW`: doubled or halved first, then between."""
    low, high = 0.0, 0.0
    while not (low and high) and 0.01 < rate < 1e6:
        if holds(rate):
            low, rate = rate, rate * DOUBLING
        else:
            high, rate = rate, rate / DOUBLING
    while low and high / low > NARROW:
        middle = float(np.sqrt(low * high))
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _rows_for(args: LoadTestArguments, url: str) -> TaskData:
    """The texts, their labels in the order of the server's classes."""
    headers = {"authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    try:
        request = urllib.request.Request(f"{url}/info", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            info = json.load(response)
        with urllib.request.urlopen(f"{url}/health", timeout=10):
            pass
        names = tuple(info["model_type"]["classifier"]["id2label"].values())
        problem_type = info["problem_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--url {url}: no `dpbert serve` that is ready answers there ({error}); name it as "
            "http://HOST:PORT."
        ) from error
    return load_task(
        data_dir=args.data_dir,
        validation_file=args.input_file,
        columns=Columns(args.text_column_name, args.text_pair_column_name, args.label_column_name),
        model=classes_of_model(problem_type, len(names), names),
        labels="optional",
    )


def _stream(args: LoadTestArguments, url: str, load: float, task: TaskData, seed: int) -> Traffic:
    rows = task.splits[task.spec.validation_splits[0]]
    texts: list[Any] = list(rows.text_a)
    if rows.text_b is not None:
        texts = [list(pair) for pair in zip(rows.text_a, rows.text_b, strict=True)]
    return asyncio.run(
        drive(
            url,
            texts,
            _open_loop(args, load, seed) if args.rate else ClosedLoop(int(load), args.seconds),
            budget=args.budget[0] if args.budget else None,
            api_key=args.api_key,
            hostile=args.hostile,
            seed=seed,
        )
    )


def _open_loop(args: LoadTestArguments, rate: float, seed: int) -> OpenLoop:
    most = max(rate, args.burst_rate or 0.0)
    number = int(most * args.seconds * 1.5) + 100
    if args.burst_rate is None:
        arrivals = poisson_arrivals(rate, number, seed)
    else:
        arrivals = bursty_arrivals((rate, args.burst_rate), args.burst_seconds, number, seed)
    return OpenLoop(rate, arrivals[arrivals < args.seconds])


def main() -> None:
    load_test(parse(LoadTestArguments, __doc__, positional="url"))
