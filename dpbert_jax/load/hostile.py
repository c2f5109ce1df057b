"""Requests that a server has to survive: each is refused, or hard to answer; no other suffers."""

import asyncio
import contextlib
import io
import itertools
import json
from urllib.parse import urlsplit

import aiohttp

FAILED = 0  # the status of a request that got no answer at all
LEFT = -1  # the status where the client itself has left
HEAD = b"POST /predict HTTP/1.1\r\nhost: server\r\ncontent-type: application/json\r\n"
BODIES: dict[str, tuple[bytes, int]] = {
    "no JSON": (b"{", 422),
    "a number for a text": (b'{"inputs": 5}', 422),
    "an empty text": (b'{"inputs": ""}', 400),
    "no UTF-8": (b'{"inputs": "\xff\xfe"}', 422),
    "a budget of 7": (b'{"inputs": "a", "budget": 7}', 422),
    "a thousand texts": (json.dumps({"inputs": [["a"]] * 1000}).encode(), 413),
    "a long text": (json.dumps({"inputs": "word " * 100_000}).encode(), 413),
    "a long text to cut": (
        json.dumps({"inputs": "word " * 100_000, "truncate": True}).encode(),
        200,
    ),
    "long punctuation": (json.dumps({"inputs": "!" * 500_000}).encode(), 413),
    "ten megabytes": (b'{"inputs": "' + b"a" * 10_000_000 + b'"}', 413),
}
GONE = ("leaves at once", "leaves in the middle of its body", "stalls in its headers")
EXPECTED = {
    **{kind: {status} for kind, (_, status) in BODIES.items()},
    **{kind: {LEFT} for kind in GONE},
}
# It is refused by its length: the connection may be closed while it is still sent.
EXPECTED["ten megabytes"].add(FAILED)
STALL_SECONDS = 20.0  # that a half-open connection is held


class Hostile:
    """Sends all kinds in turn."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        parts = urlsplit(url)
        self._session = session
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._kinds = itertools.cycle((*BODIES, *GONE))

    async def send(self, met: list[tuple[str, int]]) -> None:
        """Sends the next kind, and notes the status that it met."""
        kind = next(self._kinds)
        status = FAILED
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            if kind in BODIES:
                # A connection of its own: one that is refused in its middle is closed.
                body = io.BytesIO(BODIES[kind][0])
                post = self._session.post("/predict", data=body, headers={"connection": "close"})
                async with post as response:
                    await response.read()
                    status = response.status
            else:
                await self._leave(kind)
                status = LEFT
        met.append((kind, status))

    async def _leave(self, kind: str) -> None:
        _, writer = await asyncio.open_connection(*self._address)
        try:
            body = b'{"inputs": "a film"}'
            length = b"content-length: %d\r\n\r\n" % len(body)
            if kind == "leaves at once":
                writer.write(HEAD + length + body)
            elif kind == "leaves in the middle of its body":
                writer.write(HEAD + length + body[:5])
            else:
                writer.write(HEAD)
            await writer.drain()
            if kind == "stalls in its headers":
                await asyncio.sleep(STALL_SECONDS)
        finally:
            writer.close()
