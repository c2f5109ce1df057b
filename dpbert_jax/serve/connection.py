"""What uvicorn leaves open: connections whose request does not come, and headers without end."""

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD = 2**16  # bytes of a request's headers, of which the last part read may be beyond


class Connection(HttpToolsProtocol):
    """Gives the headers of each request `head_seconds`; the guard sees to the bodies.

    A body that was refused before it was read has as long: it is read and forgotten, so that its
    client, which is still sending, comes to read why.
    """

    head_seconds = 10.0
    _late: asyncio.TimerHandle | None = None  # while something is waited for
    _head = 0  # bytes of headers
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._late is not None and not self._in_body:
            self._head += len(data)
            if self._head > MAX_HEAD and b"\r\n\r\n" not in data:
                self._refuse(431, f"Headers may have {MAX_HEAD} bytes.", "Validation")
                return
        super().data_received(data)
        # Bytes that begin no request put off uvicorn's own limit, for good.
        if self._late is None and not self._is_answering() and not self.transport.is_closing():
            self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_here()
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """In the form of all errors."""
        self._refuse(400, msg, "Validation")

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_is_here()
        self._late = asyncio.get_running_loop().call_later(self.head_seconds, self._end)

    def _head_is_here(self) -> None:
        self._head = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        if self._is_answering():  # the request before this one: its answer comes first
            self._await_head()
        elif self._in_body:  # of a request that has its answer
            self.transport.close()
        else:
            self._refuse(408, "The request's headers did not come in time.", "Timeout")

    def _refuse(self, status: int, error: str, kind: str) -> None:
        self._head_is_here()
        body = json.dumps({"error": error, "error_type": kind}).encode()
        about = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + about % len(body) + body)
        self.transport.close()
