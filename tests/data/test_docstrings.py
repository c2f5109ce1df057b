from itertools import combinations

import numpy as np
import pytest
from scipy.sparse import csr_array

from dpbert_jax.data import docstrings, package_text
from dpbert_jax.data.docstrings import load_docstrings, prose_sentences, word_set
from dpbert_jax.data.sources import load_task
from dpbert_jax.data.tasks import TaskData


@pytest.fixture(scope="module")
def task() -> TaskData:
    return load_task(task_name="docstrings")


def test_size_and_balance(task: TaskData):
    assert task.spec.num_labels >= 6
    assert len(task.splits["train"]) >= 4_000
    for split in task.splits.values():
        assert split.labels is not None
        counts = np.bincount(split.labels, minlength=task.spec.num_labels)
        assert counts.min() >= 0.9 * counts.max()


def test_the_same_rows_every_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(docstrings, "CANDIDATES_PER_CLASS", 60)
    monkeypatch.setattr(docstrings, "VALIDATION_PER_CLASS", 10)
    monkeypatch.setattr(docstrings, "TRAIN_PER_CLASS", 30)
    read = load_docstrings.__wrapped__  # what is kept in memory would always be the same
    one, two = read().splits, read().splits
    assert (len(one["train"]), len(one["validation"])) == (240, 80)
    for name in one:
        assert one[name].text_a == two[name].text_a
        np.testing.assert_array_equal(one[name].labels, two[name].labels)


def test_no_sentence_names_a_package(task: TaskData):
    for split in task.splits.values():
        for sentence in split.text_a:
            assert not any(name in sentence.lower() for name in task.spec.labels or ()), sentence


def test_no_near_duplicates_within_or_across_splits_and_classes(task: TaskData):
    sentences = [text for split in task.splits.values() for text in split.text_a]
    words = [word_set(sentence) for sentence in sentences]
    vocabulary = {word: column for column, word in enumerate(sorted(set().union(*words)))}
    # All pairs, as a product of 0/1 matrices: a check of the prefix filter by another way.
    columns = [vocabulary[word] for members in words for word in members]
    starts = np.cumsum([0, *map(len, words)])
    matrix = csr_array((np.ones(len(columns), np.int32), columns, starts))
    shared = (matrix @ matrix.T).tocoo()
    sizes = np.diff(starts)
    union = sizes[shared.row] + sizes[shared.col] - shared.data
    assert len(words) == len(set(words))
    assert (shared.data >= package_text.NEAR_DUPLICATE * union).sum() == len(words), "with itself"


def test_near_duplicates_leave_the_first():
    sentences = [
        "Return the sum of the array elements over a given axis.",
        "Return the sum of the array elements over the given axis.",
        "Draw a line between two points of the figure.",
    ]
    candidates = [
        package_text.Candidate(str(rank), 0, sentence, word_set(sentence))
        for rank, sentence in enumerate(sentences)
    ]
    kept = [c.text for c in package_text.without_near_duplicates(candidates)]
    assert kept == [sentences[0], sentences[2]]
    assert not any(package_text.is_near(word_set(a), word_set(b)) for a, b in combinations(kept, 2))


DOCSTRING = """Compute the mean of the values along one axis.

    The result is a new array that shares no memory with the first. It is
    always a float. Short one here.

    Parameters
    ----------
    values : array
        This is the array whose mean will be computed here.

    Notes
    -----
    The mean is the sum of all elements divided by their number.

    >>> print("Not a sentence, although it ends like one does.")
    See `other` for the version that does not copy the data.

    * This one is an item of a list of things.
    """


def test_prose_is_told_from_code_tables_and_lists():
    assert list(prose_sentences(DOCSTRING)) == [
        "Compute the mean of the values along one axis.",
        "The result is a new array that shares no memory with the first.",
        "The mean is the sum of all elements divided by their number.",
    ]
