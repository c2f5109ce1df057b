"""Replicas on a local Ray: the same answers, and a replica's death costs no request."""

import asyncio
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import httpx
import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.model import Model
from dpbert_jax.serve import ask_again

pytest.importorskip("ray", reason="Ray is not installed: pip install 'dpbert-jax[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of its processes and sockets
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    on_ray = importlib.import_module("dpbert_jax.serve.ray")

TEXTS = ["the film was good", "a dog", "bad bad bad cat on the mat", "sun and walk"]


DRIVER = """
import json, sys
from ray import serve
from ray.serve.config import HTTPOptions
from dpbert_jax.serve.ray import build
port, flags = json.loads(sys.argv[1])
serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
serve.run(build(flags))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
"""

ABOUT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "dpbert_jax.serve.ask_again:middlewares",
    "RAY_AUTH_MODE": "disabled",
}


@pytest.fixture
def replicas(served_folder):
    """Two of them on a Ray of their own; the proxy's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"policy": "greedy", "max_batch_size": 4, "num_replicas": 2}
    about = json.dumps([port, {"model_name_or_path": str(served_folder), **flags}])
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, about],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ABOUT,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert any(line == "ready\n" for line in process.stdout)
        yield f"http://127.0.0.1:{port}"
        process.stdin.close()
        process.stdout.read()


@pytest.mark.slow
def test_two_replicas_answer_and_one_that_is_killed_costs_no_request(served_folder, replicas):
    wanted = [each.label for each in Model.from_pretrained(served_folder).predict(TEXTS)]
    met = asyncio.run(_asked_while_one_is_killed(replicas, 400))
    assert {status for status, _ in met} <= {200, 503}
    assert sum(status == 200 for status, _ in met) >= 0.95 * len(met)
    for number, (status, label) in enumerate(met):
        assert status == 503 or label == wanted[number % len(wanted)]


async def _asked_while_one_is_killed(address, number):
    """Statuses and labels of requests, eight at a time; a replica dies after a fourth of them."""
    met: list = [None] * number
    left = iter(range(number))

    async def ask(client):
        for i in left:
            if i == number // 4:
                os.kill(_processes()[0], signal.SIGKILL)
            answer = await client.post("/predict", json={"inputs": TEXTS[i % len(TEXTS)]})
            met[i] = (answer.status_code, answer.json()[0]["label"] if answer.is_success else None)

    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        await asyncio.gather(*(ask(client) for _ in range(8)))
    return met


def _processes():
    """The process numbers of the replicas."""
    lines = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(number) for number, line in lines.items() if line.startswith(b"ray::ServeReplica")]


def test_flags_are_those_of_the_command(served_folder):
    about = {"model_name_or_path": str(served_folder)}
    with pytest.raises(UserError, match="Ray Serve listens"):
        on_ray.build({**about, "port": "80"})
    with pytest.raises(UserError, match="but must be above 0"):
        on_ray.build({**about, "max_batch_size": "0"})
    with pytest.raises(SystemExit):
        on_ray.build({**about, "batch": "8"})


def asked(app, body=b"a body"):
    """What an ASGI application answers: its messages."""
    sent, parts = [], [body[:2], body[2:]]

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    asyncio.run(ask_again.AskAgain(app)({"type": "http"}, receive, send))
    return sent


class Failing:
    """Fails so often, in one of three ways, and then echoes the body."""

    def __init__(self, times, how):
        self.left, self.how = times, how

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.left -= 1
        if self.left >= 0 and self.how == "raises":
            raise RuntimeError("the actor died")
        if self.left >= 0 and self.how == "says nothing":
            return
        status, text = (500, b"Internal Server Error") if self.left >= 0 else (200, body)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": text})


@pytest.mark.parametrize("how", ["raises", "says nothing", "says 500"])
def test_a_request_is_asked_again_whole(how):
    for times in range(ask_again.ATTEMPTS):
        start, body = asked(Failing(times, how))
        assert (start["status"], body["body"]) == (200, b"a body")
    start, body = asked(Failing(ask_again.ATTEMPTS, how))
    assert start["status"] == 503 and b"Unhealthy" in body["body"]


def test_a_client_that_has_left_is_not_asked_for_again():
    calls, sent = [], []

    async def silent(scope, receive, send):
        calls.append(await receive())

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(ask_again.AskAgain(silent)({"type": "http"}, receive, send))
    assert len(calls) == 1 and not sent


def test_a_body_too_large_to_keep_is_asked_once(monkeypatch):
    monkeypatch.setattr(ask_again, "MAX_KEPT", 3)
    assert asked(Failing(0, "raises"))[0]["status"] == 200
    assert asked(Failing(1, "raises"))[0]["status"] == 503
