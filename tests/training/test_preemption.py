"""Signals: kept while a step is under way, obeyed at once where nothing would be lost."""

import os
import signal
import subprocess
import sys

import pytest

from dpbert_jax.training.preemption import SIGNALS, Preemption, exit_code


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_work_that_looks_for_it(number):
    with Preemption() as preemption:
        with pytest.raises(SystemExit) as stop, preemption.deferred():
            assert preemption.signal == 0
            send(number)
            assert preemption.signal == number
        assert stop.value.code == exit_code(number)


def test_elsewhere_a_signal_ends_the_process():
    with pytest.raises(SystemExit) as stop, Preemption():
        send(signal.SIGTERM)
    assert stop.value.code == 143


def test_behind_it_signals_are_what_they_were():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Preemption():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_signal_ends_the_process_at_once():
    script = """
import os, signal
from dpbert_jax.training.preemption import Preemption
with Preemption() as preemption, preemption.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    print("first", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("second", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "first\n")
