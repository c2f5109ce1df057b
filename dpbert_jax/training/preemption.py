"""SIGTERM and SIGINT as a wish to stop: a machine that is taken away, or Ctrl-C."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def exit_code(number: int) -> int:
    """What a shell reports of a process that a signal ended: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + number


class Preemption:
    """Listens for signals while it is entered.

    A signal that comes within `deferred` is kept in `signal` until the work there looks for it; one
    that comes elsewhere, where nothing would be lost, ends the process as soon as Python can. A
    second signal ends it at once.
    """

    def __init__(self) -> None:
        self.signal = 0  # of the signal that came first
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        # Only the main thread may listen; elsewhere, as in a notebook's worker, signals stay as
        # they are.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Work that looks for a signal; what comes too late for it ends the process behind it."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.signal:
            raise SystemExit(exit_code(self.signal))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(exit_code(number))
        self.signal = number
        if not self._deferred:
            raise SystemExit(exit_code(number))
