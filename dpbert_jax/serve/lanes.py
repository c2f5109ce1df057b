"""Tokenising beside the requests, so that a long text holds up other long ones only."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.errors import UserError
from dpbert_jax.inference.texts import Encoder, Texts
from dpbert_jax.serve.errors import Overloaded, TooLarge
from dpbert_jax.serve.protocol import check_words

LONG = 10_000  # characters of a request: some 5 ms of tokenising; a megabyte takes half a second
MOST_LONG = 16  # requests of more that may wait for each other


class _Lane:
    def __init__(self, name: str, tokenizer: Any) -> None:
        # A tokenizer for each thread: truncation is a setting of it.
        self._encoder = Encoder(tokenizer)
        self.thread = ThreadPoolExecutor(1, f"tokenize-{name}")
        self.waiting = 0

    def encode(self, texts: Texts, longest: int, truncate: bool, direction: str) -> TokenizedSplit:
        if not truncate:
            check_words(texts, longest)
        try:
            return self._encoder.encode(texts, longest, truncate, direction).split
        except UserError as error:
            raise TooLarge(str(error)) from None


class Lanes:
    """One thread for the requests of few characters, one for all others."""

    def __init__(self, tokenizer: Any, max_seconds: float) -> None:
        """`max_seconds`: from a request's arrival to the end of its tokenising."""
        self._short, self._long = (_Lane(name, tokenizer) for name in ("short", "long"))
        self._max_seconds = max_seconds

    async def encode(
        self, texts: Texts, longest: int, truncate: bool, direction: str, arrived: float
    ) -> TokenizedSplit:
        """Token ids of a request's texts, cut to `longest` tokens if `truncate`.

        Raises:
            TooLarge: a text is longer, and was not to be cut.
            Overloaded: it had to wait for too long, or behind too many others.
        """
        characters = sum(len(row) if isinstance(row, str) else sum(map(len, row)) for row in texts)
        lane = self._long if characters > LONG else self._short
        if lane is self._long and lane.waiting >= MOST_LONG:
            raise Overloaded(f"{lane.waiting} long requests are waiting: try again later.")
        call = (lane.encode, texts, longest, truncate, direction)
        lane.waiting += 1
        try:
            left = max(arrived + self._max_seconds - time.monotonic(), 0.0)
            running = asyncio.get_running_loop().run_in_executor(lane.thread, *call)
            return await asyncio.wait_for(running, left)
        except TimeoutError:
            error = f"It was not tokenised within {self._max_seconds:g} seconds."
            raise Overloaded(error) from None
        finally:
            lane.waiting -= 1

    def close(self) -> None:
        """Finishes what was begun."""
        for lane in (self._short, self._long):
            lane.thread.shutdown()
