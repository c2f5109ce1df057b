"""The protocol: everything compiled and warm, variants interleaved, minimum, median and p95."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dpbert_jax.benchmark.peers import Peer

Batches = list[dict[str, np.ndarray]]


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: minimum, median, 95th percentile."""
    values = 1000 * np.array(seconds)
    return {
        "min_ms": float(values.min()),
        "median_ms": float(np.median(values)),
        "p95_ms": float(np.percentile(values, 95)),
    }


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    peers: Mapping[str, tuple[Peer, Batches]],
    repeats: int,
    rounds: int = 3,
) -> dict[str, dict[str, float]]:
    """Times calls that block until their result is on the host, and peers beside them.

    In each of `rounds` rounds, calls take turns in this process and each peer has its turn in its
    own, so that a machine that slows down slows all. The first call of each is its compilation and
    is reported apart, a second one warms up; every peer's turn begins with an untimed pass.
    """
    seconds: dict[str, list[float]] = {name: [] for name in (*calls, *peers)}
    first = {}
    for name, call in calls.items():
        began = time.perf_counter()
        call()
        first[name] = time.perf_counter() - began
        call()
    turns = -(-repeats // rounds)
    for _ in range(rounds):
        for _ in range(turns):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
        for name, (peer, batches) in peers.items():
            seconds[name] += peer.run(batches, turns + 1)[1][1:]
    found: dict[str, dict[str, float]] = {name: summary(taken) for name, taken in seconds.items()}
    for name, value in first.items():
        found[name]["first_call_seconds"] = value
    return found
