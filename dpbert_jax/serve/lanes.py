"""Tokenising beside the requests, so that a long text holds up other long ones only."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.inference.texts import Encoder, Texts

LONG = 10_000  # characters of a request: some 5 ms of tokenising; a megabyte takes half a second


class Lanes:
    """One thread for the requests of few characters, one for all others."""

    def __init__(self, tokenizer: Any) -> None:
        # A tokenizer for each thread: truncation is a setting of it.
        self._short, self._long = (
            (Encoder(tokenizer), ThreadPoolExecutor(1, f"tokenize-{name}"))
            for name in ("short", "long")
        )

    async def encode(
        self, texts: Texts, longest: int, truncate: bool, direction: str
    ) -> TokenizedSplit:
        """Token ids of a request's texts, cut to `longest` tokens if `truncate`.

        Raises:
            UserError: a text is longer, and was not to be cut.
        """
        characters = sum(len(row) if isinstance(row, str) else sum(map(len, row)) for row in texts)
        encoder, thread = self._long if characters > LONG else self._short
        call = (encoder.encode, texts, longest, truncate, direction)
        return (await asyncio.get_running_loop().run_in_executor(thread, *call)).split

    def close(self) -> None:
        """Finishes what was begun."""
        for _, thread in (self._short, self._long):
            thread.shutdown()
