"""Serves a run or an ONNX export over HTTP: text-embeddings-inference's, vLLM's, KServe's protocol.

It listens at 127.0.0.1 unless told otherwise. Texts are never logged.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from dpbert_jax.errors import UserError
from dpbert_jax.flags import parse
from dpbert_jax.serve.app import make_app
from dpbert_jax.serve.arguments import ServeArguments
from dpbert_jax.serve.backend import Backend, open_backend
from dpbert_jax.serve.choose import budgets_of, choose_policy
from dpbert_jax.serve.connection import Connection
from dpbert_jax.serve.service import Service

logger = logging.getLogger(__name__)

IDLE_SECONDS = 5  # that a connection without a request is kept
CLOSING_SECONDS = 30  # that accepted requests have when the server is told to end


class _Server(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM and SIGINT: both are how a server ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def make_service(args: ServeArguments) -> Service:
    """Loads the model and decides on the batching policy.

    Raises:
        UserError: the model or a budget cannot be had.
    """
    backend: Backend = open_backend(
        args.model_name_or_path,
        args.backend,
        max_batch_size=args.max_batch_size,
        max_padding=args.max_padding,
    )
    budgets = budgets_of(args, backend)
    return Service(args, backend, lambda: choose_policy(args, backend, budgets), budgets)


async def serve(args: ServeArguments) -> bool:
    """Serves until SIGTERM or SIGINT; what was accepted is answered. Was it ever ready?

    Raises:
        UserError: the address is taken, or the model cannot be had.
        Exception: whatever kept the model from becoming ready.
    """
    listener = _listen(args)
    service = make_service(args)
    host, port = listener.getsockname()[:2]
    logger.info("%s, %s: http://%s:%d", service.backend.model_id, service.backend.name, host, port)
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    server = _Server(config_of(args, make_app(service, failed)))
    await server.serve([listener])
    if failures:
        raise failures[0]
    return service.started.is_set()


def config_of(args: ServeArguments, app: FastAPI) -> uvicorn.Config:
    """How uvicorn runs the application."""

    class Timed(Connection):
        head_seconds = args.body_timeout_ms / 1000

    return uvicorn.Config(
        app,
        http=Timed,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        backlog=args.max_concurrent_requests,
        server_header=False,
    )


def _listen(args: ServeArguments) -> socket.socket:
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named: else one
    # on a connection that is used again waits 40 ms for the client to acknowledge the last.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((args.host, args.port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"Cannot listen at {args.host}:{args.port}: {error.strerror}. Name another --port."
        ) from error
    return listener


async def _until_told(args: ServeArguments) -> None:
    if not await serve(args):
        # A thread still compiles or measures, which cannot be told to stop: no use waiting for it.
        logging.shutdown()
        os._exit(0)


def main() -> None:
    asyncio.run(_until_told(parse(ServeArguments, __doc__)))
