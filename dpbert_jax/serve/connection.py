"""A connection whose request does not come is closed: uvicorn itself would wait for good."""

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BODY = json.dumps({"error": "The request's headers did not come in time.", "error_type": "Timeout"})
ANSWER = (
    "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    f"content-length: {len(BODY)}\r\n\r\n{BODY}"
).encode()


class Connection(HttpToolsProtocol):
    """Gives the headers of each request `head_seconds`; the guard sees to the bodies."""

    head_seconds = 10.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_here()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_is_here()
        self._late = asyncio.get_running_loop().call_later(self.head_seconds, self._end)

    def _head_is_here(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self.transport.write(ANSWER)
        self.transport.close()
