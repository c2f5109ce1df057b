"""A caller's texts: which are taken, and their token ids as evaluation has them."""

import logging
import reprlib
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.errors import UserError

logger = logging.getLogger(__name__)

LISTED = 20  # positions that a sentence names at most

Texts = list[str] | list[tuple[str, str]]


def read_texts(texts: Any, text_pairs: Any = None) -> Texts:
    """The texts, or the pairs, of a call.

    Taken are sequences (list, tuple, numpy array, pandas Series, column of a dataset) of strings,
    or of pairs of strings. An empty string is a text, with its special tokens only; in files it is
    refused, as the sign of a column that went missing.

    Raises:
        UserError: something else, named with its position, counted from 0.
    """
    first = _listed(texts, "texts")
    if text_pairs is not None:
        second = _listed(text_pairs, "text_pairs")
        if len(first) != len(second):
            raise UserError(f"There are {len(first)} texts, but {len(second)} second segments.")
        return list(
            zip(
                (_text(text, f"texts[{i}]") for i, text in enumerate(first)),
                (_text(text, f"text_pairs[{i}]") for i, text in enumerate(second)),
                strict=True,
            )
        )
    if not (first and isinstance(first[0], list | tuple)):
        return [_text(text, f"texts[{i}]") for i, text in enumerate(first)]
    pairs = []
    for i, pair in enumerate(first):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(
                f"texts[{i}] is {_shown(pair)}, but must be a pair of strings, as texts[0] is no "
                "string."
            )
        pairs.append((_text(pair[0], f"texts[{i}][0]"), _text(pair[1], f"texts[{i}][1]")))
    return pairs


def _listed(values: Any, name: str) -> list[Any]:
    if isinstance(values, str):
        raise UserError(f"{name}: give a list of texts, not a single string.")
    if hasattr(values, "tolist"):  # numpy's arrays, pandas' Series
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray):
        raise UserError(
            f"{name} is {_shown(values)}, but must be a list of texts (of a table: one column)."
        )
    return list(values)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} is {_shown(value)}, but must be a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} holds half of a surrogate pair, {value[error.start]!r} at character "
            f"{error.start}, which stands for no text: decode its bytes anew, as UTF-8."
        ) from error
    return value


def _shown(value: Any) -> str:
    kind = type(value).__name__
    if value is None:
        return "None"
    # A table's own repr is a page.
    plain = isinstance(value, str | bytes | int | float | list | tuple | dict)
    return f"{reprlib.repr(value)} ({kind})" if plain else f"of type {kind}"


class Encoded(NamedTuple):
    """Texts as token ids, and which of them were cut."""

    split: TokenizedSplit
    truncated: np.ndarray  # bool [N]


class Encoder:
    """Tokenises as `data.tokenize` does; of what is asked nothing is kept on disk."""

    def __init__(self, tokenizer: Any) -> None:
        # Copies of its Rust half: truncation is a setting of it, and the caller's keeps its own.
        self._whole, self._cutting = (
            Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()) for _ in range(2)
        )
        self._whole.no_truncation()
        self._whole.no_padding()
        self._cutting.no_padding()

    def encode(
        self, texts: Texts, longest: int, truncation: bool, direction: str = "right"
    ) -> Encoded:
        """Token ids, cut to `longest` tokens where longer: of pairs, the longer text first.

        `direction` is the end that is cut, right or left.

        Raises:
            UserError: `longest` leaves no room for text, or texts are longer and `truncation` is
                False; all of them are named.
        """
        a_row = 2 if texts and isinstance(texts[0], tuple) else 1
        fewest = self._whole.num_special_tokens_to_add(a_row == 2) + a_row
        if longest < fewest:
            raise UserError(f"max_length {longest} leaves no room: give {fewest} or more.")
        encodings = self._whole.encode_batch(texts)
        over = [i for i, encoding in enumerate(encodings) if len(encoding.ids) > longest]
        if over and not truncation:
            lengths = [f"{i} ({len(encodings[i].ids)} tokens)" for i in over[:LISTED]]
            more = f" and {len(over) - LISTED} more" if len(over) > LISTED else ""
            raise UserError(
                f"{len(over)} of {len(texts)} texts have more than {longest} tokens: "
                f"{', '.join(lengths)}{more}, counted from 0. Shorten them, raise max_length, or "
                "leave truncation on."
            )
        if over:
            logger.warning("%d of %d texts were cut to %d tokens.", len(over), len(texts), longest)
            self._cutting.enable_truncation(longest, strategy="longest_first", direction=direction)
            cut = self._cutting.encode_batch([texts[i] for i in over])
            for i, encoding in zip(over, cut, strict=True):
                encodings[i] = encoding
        lengths = [len(encoding.ids) for encoding in encodings]
        token_ids = chain.from_iterable(encoding.ids for encoding in encodings)
        type_ids = chain.from_iterable(encoding.type_ids for encoding in encodings)
        split = TokenizedSplit(
            token_ids=np.fromiter(token_ids, np.int32),
            type_ids=np.fromiter(type_ids, np.int8),
            offsets=np.cumsum([0, *lengths], dtype=np.int64),
            labels=None,
            truncated=len(over),
        )
        return Encoded(split, np.isin(np.arange(len(texts)), over))
