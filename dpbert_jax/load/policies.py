"""Compares batching policies by simulation, on a model's measured times or on made-up ones.

What is compared is a request's mean latency, in seconds, plus what batches cost in a second: what
the solved policy minimises, whose own figure for it is the gain. At each load, a share of what full
batches can serve, it stands beside greedy batches and beside fixed sizes with time-outs: the best
of 35 for that load, chosen on the arrivals that it is judged on, and the one that is best over all
loads, as a server is set up that does not know its load. Without a model, a batch of a requests
takes 0.5 + 0.25 a seconds and costs 0.5 + 0.15 a.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpbert_jax.benchmark.environment import make_room
from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, list_flag, parse
from dpbert_jax.serve.arguments import ServeArguments
from dpbert_jax.serve.backend import open_backend
from dpbert_jax.serve.measure import measured
from dpbert_jax.serve.policy import FixedSize, Greedy, Policy, Table
from dpbert_jax.serve.simulate import poisson_arrivals, simulate
from dpbert_jax.serve.smdp import Service, solve

logger = logging.getLogger(__name__)

LARGEST = 8  # batch of the made-up service
SIZES = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # of fixed batches, shares of the largest
TIMEOUTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # times what a batch of one takes


@dataclass(frozen=True)
class PoliciesArguments:
    model_name_or_path: str | None = flag(
        None,
        "Folder of a run or of an ONNX export, whose batches are measured here or were by `dpbert "
        "serve`; may be given first, without flag. Default: the made-up times.",
    )
    load: list[float] = list_flag(
        [0.1, 0.3, 0.5, 0.7, 0.9, 0.95], "Arrivals, as shares of what full batches serve."
    )
    batch_cost: float = flag(
        1.0,
        "What a batch costs, times this, is added to latency; a model's batch costs its seconds.",
    )
    arrivals: int = flag(40_000, "Requests of each simulated stream.")
    seeds: int = flag(4, "Streams at each load.")
    length: int = flag(32, "Tokens of a model's texts.")
    budget: list[float] = list_flag(
        [1.0], "Share of the dense FLOPs that a model spends on each; one."
    )
    max_batch_size: int = flag(32, "Texts of a model's batch.")
    measure: bool = flag(False, "Measure the model's latencies anew.")
    json: str | None = flag(None, "Write the figures here, a list with an object for each load.")

    def __post_init__(self) -> None:
        if not self.load or not 0 < min(self.load) <= max(self.load) < 1:
            raise UserError("--load are shares of what can be served: above 0, below 1.")
        if self.batch_cost < 0:
            raise UserError(f"--batch_cost is {self.batch_cost}, but must not be below 0.")
        if min(self.arrivals, self.seeds, self.length, self.max_batch_size) < 1:
            raise UserError(
                "--arrivals, --seeds, --length and --max_batch_size must be at least 1."
            )
        if len(self.budget) != 1:
            raise UserError("A model's texts are simulated at one --budget.")
        if self.json:
            make_room("json", Path(self.json))


def compare_policies(args: PoliciesArguments) -> list[dict[str, Any]]:
    """The figures at each load.

    Raises:
        UserError: the model or the budget cannot be had.
    """
    service = _service(args)
    judged = [_at_load(service, load, args.arrivals, args.seeds) for load in args.load]
    fixed = np.array([each.fixed for each in judged])  # [loads, settings]
    for_all = int((fixed / fixed.min(axis=1, keepdims=True)).mean(axis=0).argmin())
    found = [_report(service, each, for_all) for each in judged]
    for each in found:
        print(json.dumps(each), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _service(args: PoliciesArguments) -> Service:
    if args.model_name_or_path is None:
        rows = np.arange(1, LARGEST + 1)[:, None]
        return Service(0.5 + 0.25 * rows, args.batch_cost * (0.5 + 0.15 * rows))
    flags = ServeArguments(args.model_name_or_path, max_batch_size=args.max_batch_size)
    backend = open_backend(
        flags.model_name_or_path,
        flags.backend,
        max_batch_size=flags.max_batch_size,
        max_padding=flags.max_padding,
    )
    [budget] = args.budget
    backend.check_budget(budget)
    backend.warm_up()
    times = measured(backend, args.max_batch_size, budget, args.measure)
    return times.service(args.length, (budget,), args.batch_cost)


class _Judged(NamedTuple):
    load: float
    rate: float  # arrivals a second
    gain: float
    smdp: np.ndarray  # of each stream
    greedy: float
    fixed: list[float]  # of each setting


def _at_load(service: Service, load: float, number: int, seeds: int) -> _Judged:
    logger.info("Load %g.", load)
    rate = load * service.largest / float(service.seconds[-1, 0])
    solved = solve(service, rate, splits=False)  # as the server does
    own = Table((rate,), solved.rows[None], solved.levels[None])
    streams = [poisson_arrivals(rate, number, seed) for seed in range(seeds)]

    def costs(policy: Policy) -> np.ndarray:
        made = (simulate(policy, stream, service, rate) for stream in streams)
        # A second's, as the gain is, of the time that the stream really took.
        return np.array([(m.latency.sum() / rate + m.batch_cost) / m.seconds for m in made])

    fixed = [float(costs(policy).mean()) for policy in _fixed(service)]
    greedy = float(costs(Greedy(service.largest)).mean())
    return _Judged(load, rate, solved.gain, costs(own), greedy, fixed)


def _report(service: Service, judged: _Judged, for_all: int) -> dict[str, Any]:
    """`error` is the standard error of `against_gain`; times are in seconds."""
    smdp, gaps = float(judged.smdp.mean()), judged.smdp / judged.gain - 1
    settings, best = list(_fixed(service)), int(np.argmin(judged.fixed))
    report: dict[str, Any] = {
        "load": judged.load,
        "rate": round(judged.rate, 4),
        "smdp": round(smdp, 5),
        "against_gain": round(float(gaps.mean()), 4),
        "error": round(float(gaps.std(ddof=1) / np.sqrt(len(gaps))), 4) if len(gaps) > 1 else None,
        "greedy": round(judged.greedy, 5),
        "against_greedy": round(smdp / judged.greedy - 1, 4),
    }
    for name, at in (("fixed", best), ("fixed_for_all", for_all)):
        size, timeout = settings[at].rows, settings[at].timeout
        report[name] = round(judged.fixed[at], 5)
        report[f"{name}_setting"] = [size, round(timeout, 5)]
        report[f"against_{name}"] = round(smdp / judged.fixed[at] - 1, 4)
    return report


def _fixed(service: Service) -> Iterator[FixedSize]:
    for rows in sorted({int(np.ceil(size * service.largest)) for size in SIZES}):
        for times in TIMEOUTS:
            yield FixedSize(rows, times * float(service.seconds[0, 0]))


def main() -> None:
    compare_policies(parse(PoliciesArguments, __doc__))
