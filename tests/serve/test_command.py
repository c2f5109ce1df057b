"""The server's life: it ends in order when told to, and with a reason when it cannot begin."""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys

import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.serve import command
from dpbert_jax.serve.arguments import ServeArguments


@pytest.fixture
def args(served_folder):
    return ServeArguments(str(served_folder), port=0, policy="greedy", max_batch_size=2)


def test_sigterm_ends_it_without_an_error(args, monkeypatch):
    made, make_service = [], command.make_service

    def kept(args):
        made.append(make_service(args))
        return made[0]

    async def run():
        serving = asyncio.ensure_future(command.serve(args))
        await asyncio.sleep(0)
        await made[0].started.wait()
        assert gc.get_freeze_count() > 100_000  # what is there then is not looked through again
        os.kill(os.getpid(), signal.SIGTERM)
        await serving

    monkeypatch.setattr(command, "make_service", kept)
    asyncio.run(run())
    assert not made[0].ready and gc.get_freeze_count() == 0


SLOW = """
import sys, threading
from dpbert_jax import cli
from dpbert_jax.serve import command
command.choose_policy = lambda *about: print("measuring", flush=True) or threading.Event().wait()
cli.main(["serve", sys.argv[1], "--port", "0"])
"""


def test_sigterm_ends_it_while_it_measures(served_folder):
    flags = [sys.executable, "-c", SLOW, str(served_folder)]
    with subprocess.Popen(flags, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout.readline() == "measuring\n"
        slow.send_signal(signal.SIGTERM)
        assert slow.wait(60) == 0


def test_what_keeps_it_from_becoming_ready_is_told(args, monkeypatch):
    def refused(*about):
        raise UserError("No latencies can be kept here.")

    monkeypatch.setattr(command, "choose_policy", refused)
    with pytest.raises(UserError, match="No latencies"):
        asyncio.run(command.serve(args))


def test_small_answers_are_sent_at_once(args):
    """asyncio sets TCP_NODELAY by the listener's protocol; without it each waits for 40 ms."""
    with command._listen(args) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_port_in_use_is_a_sentence(served_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="Name another --port"):
            asyncio.run(command.serve(ServeArguments(str(served_folder), port=port)))
