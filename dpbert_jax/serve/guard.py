"""What stands before every route: the body's size and time, the number of requests, the token."""

import asyncio
import hmac
import logging
import time
from typing import Any

from dpbert_jax.serve.errors import Overloaded, Refused, TooLarge, Unauthorized, refusal
from dpbert_jax.serve.metrics import Metrics

logger = logging.getLogger(__name__)

# Asked by load balancers, monitoring and browsers, which bring no token.
OPEN = frozenset(
    (
        "/",
        "/page/page.js",
        "/page/style.css",
        "/health",
        "/v2/health/live",
        "/v2/health/ready",
        "/metrics",
    )
)


class Late(Refused):
    """The body did not come in time."""

    status, kind = 408, "Timeout"


class Guard:
    """ASGI middleware: reads each body itself, within its limits, and hands it on whole."""

    def __init__(
        self,
        app: Any,
        *,
        metrics: Metrics,
        max_bytes: int,
        body_seconds: float,
        max_requests: int,
        api_key: str | None,
    ) -> None:
        self._app, self._metrics = app, metrics
        self._max_bytes, self._seconds, self._most = max_bytes, body_seconds, max_requests
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()
        self._running = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        self._running += 1

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await self._admitted(scope, receive)
            await self._app(scope, _handed_on(body, receive), counted)
        except Refused as error:
            await refusal(error)(scope, receive, counted)
        except Exception:  # whatever it is, it is this request's alone, and has its answer
            if status:
                raise
            logger.exception("A request of %s has no answer.", scope["path"])
            await refusal(Refused("The server failed at this request."))(scope, receive, counted)
        finally:
            self._running -= 1
            route = getattr(scope.get("route"), "path", "none")  # of an unknown path: not its text
            self._metrics.requests.labels(route, str(status)).inc()
            if scope["method"] == "POST" and status:
                self._metrics.request.observe(time.monotonic() - began)

    async def _admitted(self, scope: Any, receive: Any) -> bytes:
        headers = dict(scope["headers"])
        if self._expected is not None and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                raise Unauthorized("Send the header `Authorization: Bearer` with the server's key.")
        if self._running > self._most and scope["path"] not in OPEN:
            raise Overloaded(f"{self._most} requests are running: try again later.")
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._body(receive), self._seconds)
        except TimeoutError:
            raise Late(f"The body did not come within {self._seconds:g} seconds.") from None

    async def _body(self, receive: Any) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self._max_bytes:
                raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"A request's body may have {self._max_bytes} bytes: send several.")


def _handed_on(body: bytes, receive: Any) -> Any:
    """A receive that gives the body in one piece, then what else comes: that the client left."""
    given = False

    async def once() -> Any:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return once
