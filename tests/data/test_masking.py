"""Masked copies against what they must leave as it is."""

import numpy as np
import pytest

from dpbert_jax.data.masking import MASKED_TOKENS, mask_tokens
from dpbert_jax.data.tasks import Examples
from dpbert_jax.data.tokenize import tokenize

TEXTS = ["the cat sat on the mat " * 8, "a dog ran in the sun " * 7] * 20
SPLIT_OF = Examples(TEXTS, TEXTS[::-1], np.arange(len(TEXTS), dtype=np.int32))


@pytest.fixture(scope="module")
def split(tiny_tokenizer, tmp_path_factory):
    return tokenize(SPLIT_OF, tiny_tokenizer, 128, tmp_path_factory.mktemp("tokens"))


def test_only_words_of_the_named_rows_are_masked(split, tiny_tokenizer):
    rows = np.arange(len(split)) % 2 == 0
    copy = mask_tokens(split, rows, tiny_tokenizer, np.random.default_rng(0))
    changed = copy.token_ids != split.token_ids
    row_of = np.repeat(np.arange(len(split)), split.lengths)
    assert (copy.token_ids[changed] == tiny_tokenizer.mask_token_id).all()
    assert not changed[~rows[row_of]].any()
    assert not np.isin(split.token_ids[changed], tiny_tokenizer.all_special_ids).any()
    count = np.bincount(row_of, changed)[rows]
    assert count.min() >= 1
    share = count / split.lengths[rows]
    assert 0.1 < share.mean() < 0.2 and share.max() > 0.2  # evenly up to MASKED_TOKENS
    assert share.max() < MASKED_TOKENS + 0.15
    for name in ("type_ids", "offsets", "labels"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(split, name))
    assert copy.token_ids.dtype == split.token_ids.dtype
