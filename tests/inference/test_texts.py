"""Texts of a call: what is taken, and that everything else is named with its position."""

import numpy as np
import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.inference.texts import read_texts

PAIRS = [("a", "b"), ("c", "d")]


class Column(list):
    """As a column of a dataset: a sequence that is no plain list."""


@pytest.mark.parametrize(
    "texts",
    [
        ["a", "c"],
        ("a", "c"),
        Column(["a", "c"]),
        np.array(["a", "c"]),
        np.array(["a", "c"], object),
        [np.str_("a"), "c"],
    ],
    ids=["list", "tuple", "sequence", "array", "objects", "numpy_strings"],
)
def test_sequences_of_strings_are_taken(texts):
    assert read_texts(texts) == ["a", "c"]
    assert read_texts(texts, texts) == [("a", "a"), ("c", "c")]


@pytest.mark.parametrize("pairs", [PAIRS, [list(pair) for pair in PAIRS], np.array(PAIRS)])
def test_pairs_are_taken(pairs):
    assert read_texts(pairs) == PAIRS


def test_an_empty_text_is_a_text():
    assert read_texts(["", " \n"]) == ["", " \n"]


def test_a_column_of_pandas_is_taken_and_a_table_is_not():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame({"text": ["a", "c"]}, index=[7, 9])
    assert read_texts(table["text"], table["text"]) == [("a", "a"), ("c", "c")]
    with pytest.raises(UserError, match=r"texts is of type DataFrame.*one column"):
        read_texts(table)
    table.loc[9, "text"] = None
    with pytest.raises(UserError, match=r"texts\[1\] is (None|nan)"):
        read_texts(table["text"])


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("a", "not a single string"),
        (b"a", r"texts is b'a' \(bytes\)"),
        (None, "texts is None, but must be a list"),
        ({"text": ["a"]}, r"texts is \{.*\(dict\)"),
        ({"a"}, "texts is of type set"),
        (iter(["a"]), "texts is of type list_iterator"),
        (np.array("a"), "texts is 'a'"),
        (["a", None], r"texts\[1\] is None, but must be a string"),
        (["a", "b", float("nan")], r"texts\[2\] is nan \(float\)"),
        (np.array(["a", np.nan], object), r"texts\[1\] is nan \(float\)"),
        (["a", {"text": "b"}], r"texts\[1\] is \{'text': 'b'\} \(dict\)"),
        (["a", ("b", "c")], r"texts\[1\] is \('b', 'c'\) \(tuple\)"),
        ([b"a"], r"texts\[0\] is b'a' \(bytes\)"),
        ([3], r"texts\[0\] is 3 \(int\)"),
        ([("a", "b"), "c"], r"texts\[1\] is 'c' \(str\), but must be a pair"),
        ([("a", "b"), ("c",)], r"texts\[1\] is \('c',\) \(tuple\), but must be a pair"),
        ([("a", "b"), ("c", None)], r"texts\[1\]\[1\] is None"),
        (["a", "b \ud83d"], r"texts\[1\] holds half of a surrogate pair, '\\ud83d' at character 2"),
    ],
)
def test_everything_else_is_one_sentence_with_the_position(texts, words):
    with pytest.raises(UserError, match=words):
        read_texts(texts)


@pytest.mark.parametrize(
    ("text_pairs", "words"),
    [
        ("ab", "text_pairs: give a list"),
        (["a"], "There are 2 texts, but 1 second segments"),
        (["a", None], r"text_pairs\[1\] is None"),
        (["a", "\udc00"], r"text_pairs\[1\] holds half"),
    ],
)
def test_second_segments_are_held_to_the_same(text_pairs, words):
    with pytest.raises(UserError, match=words):
        read_texts(["a", "b"], text_pairs)
