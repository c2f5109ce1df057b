"""Requests at times of a random stream, whatever the server makes of them: an open loop.

Who waits for answers before asking again spares a slow server; real clients do not know of each
other. Latency is counted from the moment at which a request was due.
"""

import asyncio
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from dpbert_jax.load.hostile import FAILED, Hostile

IDLE_SECONDS = 2.0  # a connection is used again within: servers close theirs after five
TIMEOUT = aiohttp.ClientTimeout(total=60)
ASKED = {"raw_scores": True, "truncate": True}  # of each request


@dataclass
class Sent:
    """A request and what became of it."""

    row: int  # of the texts
    due: float  # seconds from the stream's start
    started: float = 0.0  # when it was sent
    latency: float = 0.0  # from when it was due to its last byte
    status: int = FAILED
    queued: float = 0.0  # as the server says, seconds
    inference: float = 0.0
    budget: float = 0.0
    cost: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)


@dataclass
class Traffic:
    """All that a stream of requests met."""

    url: str
    rate: float  # mean arrivals a second that were asked for
    sent: list[Sent]
    hostile: list[tuple[str, int]]  # kind and status of each
    memory: list[float]  # bytes that the server held, each second

    @property
    def answered(self) -> list[Sent]:
        return [each for each in self.sent if each.status == 200]


async def drive(
    url: str,
    texts: Sequence[Any],
    arrivals: np.ndarray,
    *,
    rate: float,
    budget: float | None = None,
    api_key: str | None = None,
    hostile: float = 0.0,
    seed: int = 0,
) -> Traffic:
    """Sends a text, drawn at random, at each of the arrival times, and waits for all answers.

    Args:
        texts: each a text or a [text, text] pair.
        arrivals: seconds from now, ascending.
        hostile: share of further requests that no server should answer.
    """
    random = np.random.default_rng(seed)
    rows = random.integers(0, len(texts), len(arrivals))
    strangers = random.random(len(arrivals)) < hostile
    asked = {} if budget is None else {"budget": budget}
    bodies = [json.dumps({**ASKED, "inputs": text, **asked}).encode() for text in texts]
    headers = {"content-type": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    traffic = Traffic(url, rate, [], [], [])
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=TIMEOUT, headers=headers
    ) as session:
        stranger = Hostile(session, url)
        watching = asyncio.ensure_future(_watch(session, traffic.memory))
        gc.disable()  # a collection among so many records would be taken for the server's latency
        began = time.perf_counter()
        tasks = []
        for due, row, strange in zip(arrivals.tolist(), rows.tolist(), strangers, strict=True):
            wait = due - (time.perf_counter() - began)
            await asyncio.sleep(max(wait, 0.0))
            sent = Sent(row, due)
            traffic.sent.append(sent)
            tasks.append(asyncio.ensure_future(_send(session, bodies[row], sent, began)))
            if strange:
                tasks.append(asyncio.ensure_future(stranger.send(traffic.hostile)))
        await asyncio.gather(*tasks)
        gc.enable()
        watching.cancel()
    return traffic


async def _send(session: aiohttp.ClientSession, body: bytes, sent: Sent, began: float) -> None:
    sent.started = time.perf_counter() - began
    try:
        async with session.post("/predict", data=body) as response:
            answer = await response.json()
            sent.status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError):
        return
    finally:
        sent.latency = time.perf_counter() - began - sent.due
    if sent.status == 200:
        about = response.headers
        sent.queued = float(about["x-dpbert-queue-ms"]) / 1000
        sent.inference = float(about["x-dpbert-inference-ms"]) / 1000
        sent.budget, sent.cost = float(about["x-dpbert-budget"]), float(about["x-dpbert-cost"])
        sent.scores = {each["label"]: each["score"] for each in answer}


async def _watch(session: aiohttp.ClientSession, memory: list[float]) -> None:
    """The server's memory each second, where it tells."""
    while True:
        async with session.get("/metrics") as response:
            for line in (await response.text()).splitlines():
                if line.startswith("process_resident_memory_bytes "):
                    memory.append(float(line.split()[1]))
        await asyncio.sleep(1.0)
