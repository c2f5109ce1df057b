"""Texts with some of their tokens masked.

A transfer set for distillation that needs no further text (Tang et al., 1903.12136): new inputs,
near those that there are, of which a dense model can be asked.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool

from dpbert_jax.data.tokenize import TokenizedSplit

MASKED_TOKENS = 0.3  # of a copy's tokens at most: the share is drawn evenly for each


def mask_tokens(
    split: TokenizedSplit, rows: Bool[np.ndarray, " N"], tokenizer: Any, draw: np.random.Generator
) -> TokenizedSplit:
    """The split with tokens of the named rows masked, at least one of each.

    Lengths and special tokens stay. `tokenizer` must have a mask token.
    """
    row_of = np.repeat(np.arange(len(split)), split.lengths)
    shares = np.where(rows, draw.uniform(0, MASKED_TOKENS, len(split)), 0)
    special = np.isin(split.token_ids, tokenizer.all_special_ids)
    number = np.where(special, 1.0, draw.random(len(row_of)))
    least = np.minimum.reduceat(number, split.offsets[:-1])
    masked = rows[row_of] & ~special & (number <= np.maximum(shares, least)[row_of])
    token_ids = np.where(masked, np.int32(tokenizer.mask_token_id), split.token_ids)
    return dataclasses.replace(split, token_ids=token_ids)
