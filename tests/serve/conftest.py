"""A small model with a planner, and servers of it in threads of their own."""

import asyncio
import contextlib
import dataclasses
import socket
import threading

import httpx
import pytest

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.serve.arguments import ServeArguments

GRID = Calibration((0.4, 0.7, 1.0), (0.8, 0.0, -2.0))


@pytest.fixture(scope="session")
def served_config():
    encoder = dataclasses.replace(TINY, labels=("bad", "good"))
    return DPBertConfig(encoder, PlannerConfig(min_budget=0.4), GRID)


@pytest.fixture(scope="session")
def served_folder(served_config, random_params, tiny_folder, tmp_path_factory):
    """A folder of random weights: plans of several depths, and a tokenizer."""
    from dpbert_jax.hub import load_tokenizer, save_folder

    folder = tmp_path_factory.mktemp("served") / "tiny"
    folder.mkdir()
    save_folder(folder, served_config, random_params(served_config, 3), load_tokenizer(tiny_folder))
    return folder


@contextlib.contextmanager
def served(folder, **flags):
    """A server of a folder at a port of its own, and a client of it; warm."""
    import uvicorn

    from dpbert_jax.serve.app import make_app
    from dpbert_jax.serve.command import config_of, make_service

    args = ServeArguments(str(folder), **{"policy": "greedy", "max_batch_size": 4, **flags})
    service = make_service(args)
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(config_of(args, make_app(service, pytest.fail)))
    ready = threading.Event()

    async def run():
        serving = asyncio.ensure_future(server.serve([listener]))
        await service.started.wait()
        ready.set()
        await serving

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait()
    port = listener.getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.service = service
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="session")
def serving():
    """`with serving(folder, **flags) as client`."""
    return served


@pytest.fixture(scope="module")
def client(served_folder):
    with served(served_folder) as client:
        yield client
