"""Requests to a server, and what became of them.

In an open loop they come at times of a random stream, whatever the server makes of them: who waits
for answers before asking again spares a slow server, and real clients do not know of each other.
Latency is counted from the moment at which a request was due. In a closed loop some clients ask
again as soon as they have an answer: that shows what a server does at most, or for one alone.
"""

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from dpbert_jax.load.hostile import FAILED, Hostile

RETRY_SECONDS = 1.0  # that a client without an answer waits
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
    load: "Load"
    sent: list[Sent]
    hostile: list[tuple[str, int]]  # kind and status of each
    memory: list[float]  # bytes that the server held, each second

    @property
    def answered(self) -> list[Sent]:
        return [each for each in self.sent if each.status == 200]


@dataclass(frozen=True)
class OpenLoop:
    """Requests at these times, seconds from the start, ascending."""

    rate: float  # arrivals a second, of bursts those between them
    arrivals: np.ndarray


@dataclass(frozen=True)
class ClosedLoop:
    """So many clients, each of which asks again as soon as it has an answer."""

    connections: int
    seconds: float


Load = OpenLoop | ClosedLoop


async def drive(
    url: str,
    texts: Sequence[Any],
    load: Load,
    *,
    budget: float | None = None,
    api_key: str | None = None,
    hostile: float = 0.0,
    seed: int = 0,
) -> Traffic:
    """Sends texts, drawn at random, and waits for all answers.

    Args:
        texts: each a text or a [text, text] pair.
        hostile: share of further requests that no server should answer, or that are hard to.
    """
    asked = {} if budget is None else {"budget": budget}
    bodies = [json.dumps({**ASKED, "inputs": text, **asked}).encode() for text in texts]
    headers = {"content-type": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    traffic = Traffic(url, load, [], [], [])
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=TIMEOUT, headers=headers
    ) as session:
        watching = asyncio.ensure_future(_watch(session, traffic.memory))
        gc.disable()  # a collection among so many records would be taken for the server's latency
        try:
            client = _Client(session, bodies, traffic, np.random.default_rng(seed), hostile)
            if isinstance(load, OpenLoop):
                await client.at(load.arrivals)
            else:
                turns = (client.in_turn(load.seconds) for _ in range(load.connections))
                await asyncio.gather(*turns)
            await asyncio.gather(*client.strangers)
        finally:
            gc.enable()
            watching.cancel()
    return traffic


class _Client:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        bodies: list[bytes],
        traffic: Traffic,
        random: np.random.Generator,
        hostile: float,
    ) -> None:
        self._session, self._bodies, self._traffic = session, bodies, traffic
        self._random, self._share = random, hostile
        self._hostile = Hostile(session, traffic.url)
        self.strangers: list[asyncio.Future[None]] = []
        self._began = time.perf_counter()

    async def at(self, arrivals: np.ndarray) -> None:
        sending = []
        for due in arrivals.tolist():
            await asyncio.sleep(max(due - self._now(), 0.0))
            sending.append(asyncio.ensure_future(self._send(self._next(due))))
        await asyncio.gather(*sending)

    async def in_turn(self, seconds: float) -> None:
        while (due := self._now()) < seconds:
            sent = self._next(due)
            await self._send(sent)
            if sent.status == FAILED:
                # To ask a server again at once that is not there would be endless.
                await asyncio.sleep(RETRY_SECONDS)

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _next(self, due: float) -> Sent:
        """A request for a text drawn now, and perhaps a hostile one beside it."""
        sent = Sent(int(self._random.integers(0, len(self._bodies))), due)
        self._traffic.sent.append(sent)
        if self._random.random() < self._share:
            stranger = self._hostile.send(self._traffic.hostile)
            self.strangers.append(asyncio.ensure_future(stranger))
        return sent

    async def _send(self, sent: Sent) -> None:
        sent.started = self._now()
        try:
            body = self._bodies[sent.row]
            async with self._session.post("/predict", data=body) as response:
                answered = await response.read()
                sent.status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return
        finally:
            sent.latency = self._now() - sent.due
        if sent.status == 200:
            about, answer = response.headers, json.loads(answered)
            sent.queued = float(about["x-dpbert-queue-ms"]) / 1000
            sent.inference = float(about["x-dpbert-inference-ms"]) / 1000
            sent.budget, sent.cost = float(about["x-dpbert-budget"]), float(about["x-dpbert-cost"])
            sent.scores = {each["label"]: each["score"] for each in answer}


async def _watch(session: aiohttp.ClientSession, memory: list[float]) -> None:
    """The server's memory each second, where it tells."""
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with session.get("/metrics") as response:
                for line in (await response.text()).splitlines():
                    if line.startswith("process_resident_memory_bytes "):
                        memory.append(float(line.split()[1]))
        await asyncio.sleep(1.0)
