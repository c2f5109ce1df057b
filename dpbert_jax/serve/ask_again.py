"""For Ray's proxy: a request whose replica has died is asked again.

The proxy imports nothing else of this package: neither the model nor JAX.
"""

from typing import Any

from starlette.middleware import Middleware

from dpbert_jax.serve.errors import Unhealthy, refusal

ATTEMPTS = 3  # at a request whose replica dies
MAX_KEPT = 2**24  # bytes of a body that is kept to be sent again


def middlewares() -> list[Middleware]:
    """For Ray's proxy, which calls what RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names."""
    return [Middleware(AskAgain)]


class AskAgain:
    """ASGI middleware of Ray's proxy: a request whose replica has died is asked again.

    Answers change nothing, so that a second asking does no harm. Ray alone would say 500, as the
    server itself does of its own mistakes only.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Kept(receive)
        for _ in range(ATTEMPTS):
            answer = _Answer(send)
            try:
                await self._app(dict(scope), body.again(), answer.send)
            except Exception:  # whatever Ray raises of a replica that died
                if answer.begun:  # half of it is with the client
                    raise
                answer.failed = True
            if answer.begun and not answer.failed:
                return  # of a replica that died Ray says nothing at all, or 500
            if body.left:
                return  # nor of a client that has
            if body.size > MAX_KEPT:
                break
        error = Unhealthy("The replica that had this request ended: try again.")
        await refusal(error)(scope, receive, send)


class _Kept:
    """A request's body, kept as it is read, to be read again; and whether its client has left."""

    def __init__(self, receive: Any) -> None:
        self._receive, self._messages, self.size, self.left = receive, [], 0, False

    def again(self) -> Any:
        """A receive that begins at the body's start."""
        at = 0

        async def receive() -> Any:
            nonlocal at
            if at < len(self._messages):
                at += 1
                return self._messages[at - 1]
            message = await self._receive()
            self.left |= message["type"] == "http.disconnect"
            self.size += len(message.get("body", b""))
            if self.size <= MAX_KEPT:
                self._messages.append(message)
                at += 1
            return message

        return receive


class _Answer:
    """Hands an answer on, unless it says that the replica failed."""

    def __init__(self, send: Any) -> None:
        self._send, self.begun, self.failed = send, False, False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            self.failed = True
        if not self.failed:
            self.begun = True
            await self._send(message)
