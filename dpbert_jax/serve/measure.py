"""What batches take on this machine: measured once, kept with the machine's fingerprint."""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from filelock import FileLock

from dpbert_jax.benchmark.environment import own_cores, versions
from dpbert_jax.policies.rule import budget_range
from dpbert_jax.serve.backend import Backend, random_rows
from dpbert_jax.serve.smdp import Service

logger = logging.getLogger(__name__)

FOLDER = "~/.cache/dpbert_jax/serve"
LENGTHS = (16, 32, 64, 128, 256, 512)
ROUNDS = 5  # in each, every shape has its turn: a machine that slows down slows all
BUDGETS = 5  # of those trained for, whose costs are told apart
TEXTS = 32  # of each length, to tell what such texts cost
FORMAT = 2  # of what is kept


class Measured(NamedTuple):
    """Seconds of a batch by texts, tokens of each, and share of the dense FLOPs that it spent.

    Between these it is linear: in the texts, and in the cost, which is linear between budgets. What
    texts of a length cost at a budget is not the budget, which all lengths meet together. Texts of
    a length that was not measured take what the next longer ones do.
    """

    rows: list[int]
    lengths: list[int]
    budgets: list[float]  # ascending
    costs: list[list[float]]  # that were realised, [lengths, budgets]
    seconds: list[list[list[float]]]  # medians at the least budget and at 1, [lengths, rows, 2]

    def service(self, length: int, budgets: Sequence[float], batch_cost: float = 0.0) -> Service:
        """Batches of texts of so many tokens at each budget, of 1 to the most rows measured.

        A batch costs `batch_cost` times its seconds: they stand for its energy.
        """
        at = min(int(np.searchsorted(self.lengths, length)), len(self.lengths) - 1)
        by_budget = [
            [self._at_budget(at, row, budget) for budget in budgets]
            for row in range(len(self.rows))
        ]
        number = np.arange(1, self.rows[-1] + 1)
        columns = [np.interp(number, self.rows, column) for column in np.transpose(by_budget)]
        # A larger batch never takes less: what says so is noise, and would make policies odd.
        seconds = np.maximum.accumulate(np.stack(columns, axis=1), axis=0)
        return Service(seconds, batch_cost * seconds)

    def _at_budget(self, length: int, row: int, budget: float) -> float:
        costs, (fast, slow) = self.costs[length], self.seconds[length][row]
        if costs[-1] - costs[0] < 0.01:  # no planner, or one that gives such texts all layers
            return slow
        cost = np.interp(budget, self.budgets, costs)
        saved = (costs[-1] - cost) / (costs[-1] - costs[0])
        return slow - float(saved) * max(slow - fast, 0.0)


def measured(backend: Backend, max_rows: int, lowest: float, anew: bool) -> Measured:
    """What was measured before of this model on this machine, or is now."""
    about = fingerprint(backend, max_rows, lowest)
    path = Path(FOLDER).expanduser() / f"{about}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Replicas that start together would slow each other: one measures, the others wait and read.
    with FileLock(path.with_suffix(".lock")):
        if path.exists() and not anew:
            logger.info("Latencies are those of %s (--measure: anew).", path)
            return Measured(**json.loads(path.read_text(encoding="utf-8")))
        logger.info("Measuring latencies of batches; this is kept in %s.", path)
        found = measure(backend, max_rows, lowest)
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps(found._asdict()), encoding="utf-8")
        whole.replace(path)
        return found


def fingerprint(backend: Backend, max_rows: int, lowest: float) -> str:
    """Of all that latencies depend on: model, backend, processor, packages."""
    about = {
        "format": FORMAT,
        "model": repr(backend.config),
        "backend": backend.name,
        "rows": max_rows,
        "lowest": lowest,
        "longest": backend.max_seq_length,
        "weights": backend.weights,
        "processor": _processor(),
        "cores": own_cores(),
        "device": jax.devices()[0].device_kind,
        "versions": {**versions(), "dpbert-jax": version("dpbert-jax")},
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def measure(backend: Backend, max_rows: int, lowest: float) -> Measured:
    """Times batches at all layers and at the lowest budget, on texts of random tokens.

    And says what such texts cost at budgets between.
    """
    rows = sorted({min(2**n, max_rows) for n in range(max_rows.bit_length() + 1)})
    longest = backend.max_seq_length
    lengths = sorted({min(length, longest) for length in LENGTHS})
    # Between what was trained for and all layers there is nothing to ask for.
    trained = budget_range(backend.config) or (1.0, 1.0)
    asked = np.linspace(lowest, max(trained[1], lowest), BUDGETS)
    budgets = sorted({*asked.tolist(), 1.0})
    taken = np.full((ROUNDS, len(lengths), len(rows), 2), np.inf)
    costs = np.zeros((len(lengths), len(budgets)))
    vocabulary = backend.config.encoder.vocab_size
    for i, length in enumerate(lengths):
        texts = random_rows(TEXTS, length, vocabulary)
        batches = np.array_split(np.arange(TEXTS), -(-TEXTS // rows[-1]))
        for j, budget in enumerate(budgets):
            found = [backend.answer(texts.take(each), [budget] * len(each)) for each in batches]
            costs[i, j] = np.concatenate([answers.cost for answers in found]).mean()
    for turn in range(-1, ROUNDS):  # the first is not timed
        for i, length in enumerate(lengths):
            for j, number in enumerate(rows):
                texts = random_rows(number, length, vocabulary)
                for k, budget in enumerate((lowest, 1.0)):
                    began = time.perf_counter()
                    backend.answer(texts, [budget] * number)
                    if turn >= 0:
                        taken[turn, i, j, k] = time.perf_counter() - began
    seconds = np.median(taken, axis=0)
    return Measured(rows, lengths, budgets, costs.tolist(), seconds.tolist())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
