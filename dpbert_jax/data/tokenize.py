"""Texts to token ids, once: a split is tokenised as a whole and kept on disk for the next run."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from dpbert_jax.data.tasks import Examples
from dpbert_jax.errors import UserError

logger = logging.getLogger(__name__)

_CACHE_VERSION = "1"  # part of every key: raise it when what is stored changes
_ROWS_AT_ONCE = 4096  # the tokenizer's own objects weigh far more than the ids kept of them


@dataclass(frozen=True)
class TokenizedSplit:
    """The N rows of a split as token ids, end to end, special tokens included, without padding.

    Row i is `token_ids[offsets[i] : offsets[i + 1]]`.
    """

    token_ids: np.ndarray  # int32 [T]
    type_ids: np.ndarray  # int8 [T], 0 for the first text and 1 for the second
    offsets: np.ndarray  # int64 [N + 1]
    labels: np.ndarray | None  # as in Examples
    truncated: int = 0  # how many rows were cut to max_seq_length

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each row; int64 [N]."""
        return np.diff(self.offsets)

    def take(self, indices: np.ndarray) -> "TokenizedSplit":
        """The rows named by `indices`, in that order; `truncated` stays that of the whole split."""
        indices = np.asarray(indices, np.int64)
        lengths = self.lengths[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        # Row i's tokens sit at offsets[indices[i]] + 0, 1, 2, ...
        where = np.arange(offsets[-1]) + np.repeat(self.offsets[indices] - offsets[:-1], lengths)
        labels = None if self.labels is None else self.labels[indices]
        return TokenizedSplit(
            self.token_ids[where], self.type_ids[where], offsets, labels, self.truncated
        )


def tokenize(
    examples: Examples, tokenizer: Any, max_seq_length: int, cache_dir: Path | None = None
) -> TokenizedSplit:
    """Tokenise every row, special tokens included, cut to `max_seq_length` tokens where longer.

    `tokenizer` is a fast tokenizer of transformers. Pairs are cut as run_glue does it: a token at
    a time off the longer text ("longest_first"). How many rows were cut is counted in `truncated`
    and logged.

    The result is kept in `cache_dir` (default: $DPBERT_JAX_CACHE, else
    ~/.cache/dpbert_jax/tokenized) under a hash of the texts, the tokenizer and `max_seq_length`.
    Labels are not kept there. A cache that cannot be read or written costs a warning, no more.

    Raises UserError for a slow tokenizer, or a `max_seq_length` with no room for any text.
    """
    backend = _private_backend(tokenizer)
    texts_per_row = 1 if examples.text_b is None else 2
    fewest = backend.num_special_tokens_to_add(texts_per_row == 2) + texts_per_row
    if max_seq_length < fewest:
        raise UserError(
            f"max_seq_length {max_seq_length} leaves no room for text: give {fewest} or more."
        )
    directory = Path(cache_dir) if cache_dir is not None else _default_cache_dir()
    path = directory / f"{_cache_key(examples, backend, max_seq_length)}.npz"
    split = _read_cache(path, examples)
    if split is None:
        backend.enable_truncation(max_seq_length, strategy="longest_first")
        split = _tokenize_all(examples, backend)
        _write_cache(path, split)
    if split.truncated:
        logger.warning(
            "%d of %d rows were cut to %d tokens.", split.truncated, len(split), max_seq_length
        )
    return split


def _private_backend(tokenizer: Any) -> Tokenizer:
    """A copy of the tokenizer's Rust half, so that the caller's keeps its settings.

    Truncation and padding are settings of that half, which every call changes: left in, they would
    change the cache key too.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: "
            "give a model folder that holds a tokenizer.json."
        )
    backend: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _tokenize_all(examples: Examples, backend: Tokenizer) -> TokenizedSplit:
    rows: Sequence[str | tuple[str, str]] = examples.text_a
    if examples.text_b is not None:
        rows = list(zip(examples.text_a, examples.text_b, strict=True))
    token_ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    type_ids: list[np.ndarray] = [np.zeros(0, np.int8)]
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        for encoding in backend.encode_batch(rows[start : start + _ROWS_AT_ONCE]):
            token_ids.append(np.asarray(encoding.ids, np.int32))
            type_ids.append(np.asarray(encoding.type_ids, np.int8))
            lengths.append(len(encoding.ids))
            truncated += bool(encoding.overflowing)
    return TokenizedSplit(
        token_ids=np.concatenate(token_ids),
        type_ids=np.concatenate(type_ids),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=examples.labels,
        truncated=truncated,
    )


def _default_cache_dir() -> Path:
    configured = os.environ.get("DPBERT_JAX_CACHE")
    return Path(configured or "~/.cache/dpbert_jax/tokenized").expanduser()


def _cache_key(examples: Examples, backend: Tokenizer, max_seq_length: int) -> str:
    header = [_CACHE_VERSION, backend.to_str(), max_seq_length, examples.text_b is not None]
    digest = hashlib.sha256(json.dumps(header).encode())
    for texts in (examples.text_a, examples.text_b or []):
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            # The length first: "ab", "c" and "a", "bc" are different rows.
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _read_cache(path: Path, examples: Examples) -> TokenizedSplit | None:
    """The cached split, or None where there is none or it cannot be used."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            split = TokenizedSplit(
                token_ids=stored["token_ids"],
                type_ids=stored["type_ids"],
                offsets=stored["offsets"],
                labels=examples.labels,
                truncated=int(stored["truncated"]),
            )
        if len(split) != len(examples) or split.offsets[-1] != len(split.token_ids):
            raise ValueError("it does not hold the rows that its name promises")
    except FileNotFoundError:
        return None
    # A damaged zip file raises nearly anything: OSError, ValueError, KeyError, EOFError,
    # BadZipFile, zlib.error. Whatever it is, tokenising again mends it.
    except Exception as error:
        logger.warning("Cache entry %s is unusable (%s): tokenising again.", path, error)
        return None
    return split


def _write_cache(path: Path, split: TokenizedSplit) -> None:
    # Written aside and renamed: another process sees the whole entry or none.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    token_ids=split.token_ids,
                    type_ids=split.type_ids,
                    offsets=split.offsets,
                    truncated=np.asarray(split.truncated),
                )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("The tokenised split could not be kept in %s: %s.", path.parent, error)
