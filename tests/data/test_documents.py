import numpy as np
import pytest

from dpbert_jax.data import documents, sources
from dpbert_jax.data.documents import WORDS, block_sentences, load_documents
from dpbert_jax.data.package_text import SOURCES
from dpbert_jax.data.sources import load_task
from dpbert_jax.data.tasks import TaskData

SMALL = {"CANDIDATES_PER_CLASS": 40, "TRAIN_PER_CLASS": 15, "VALIDATION_PER_CLASS": 5}


@pytest.fixture(scope="module")
def task() -> TaskData:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(documents, name, value)
        return load_documents.__wrapped__()  # else later tests would find these few


def test_documents_are_long_and_of_every_package(task: TaskData):
    assert task.spec.labels == SOURCES and task.spec.text_columns == ("document",)
    for name, per_class in (("train", 15), ("validation", 5)):
        split = task.splits[name]
        words = [len(text.split()) for text in split.text_a]
        assert WORDS[0] <= min(words) and max(words) <= WORDS[1] + 40, "one sentence more"
        assert max(words) > 2.5 * min(words)
        assert split.labels is not None and set(split.labels) == set(range(len(SOURCES)))
        assert np.bincount(split.labels).max() <= per_class


def test_no_sentence_is_in_two_documents_and_none_names_a_package(task: TaskData):
    texts = [text for split in task.splits.values() for text in split.text_a]
    sentences = [part for text in texts for part in set(text.split(". "))]
    # Split at full stops, short pieces may recur: "e.g" and the like.
    long = [sentence for sentence in sentences if len(sentence.split()) > 8]
    assert len(long) > 500 and len(set(long)) > 0.99 * len(long)
    for text in texts:
        assert not any(name in text.lower() for name in SOURCES), text


def test_files_are_in_one_split(monkeypatch):
    """Of each file one document in the other split would tell its neighbours' subject."""
    files = [(SOURCES[0], number) for number in range(12)]

    def candidates(label, name, seen):
        for package, number in files:
            for part in range(4):
                text = f"{name} {number} {part}"
                rank = f"{number:03}{part}{label}"
                words = frozenset(f"{word}{number}{part}{name}" for word in range(9))
                yield documents.Candidate(rank, label, text, words), f"{package}{number}{name}"

    monkeypatch.setattr(documents, "_candidates", candidates)
    for name, value in SMALL.items():
        monkeypatch.setattr(documents, name, value)
    splits = load_documents.__wrapped__().splits
    of = {name: {tuple(t.split()[:2]) for t in rows.text_a} for name, rows in splits.items()}
    assert not of["train"] & of["validation"]
    assert (len(splits["train"]), len(splits["validation"])) == (15 * 8, 5 * 8)


def test_the_task_is_found_by_name(monkeypatch):
    read = []
    monkeypatch.setitem(sources.BUILT_IN, "documents", lambda: read.append(1) or load_small())
    assert len(load_task(task_name="documents").splits["train"]) == 8 and read == [1]


def load_small() -> TaskData:
    row = documents.Candidate("0", 0, "A text.", frozenset({"a", "text"}))
    return TaskData(documents.SPEC, {"train": documents.examples([row] * 8)})


def test_what_is_indented_alike_is_read_by_itself():
    docstring = """Compute the mean of the values along one axis.

    Parameters
    ----------
    values : array
        This is the array whose mean will be computed here. It is
        read from its beginning to its end.
    axis : int
        The number of the axis along which the mean is taken.
    """
    assert list(block_sentences(docstring)) == [
        "Compute the mean of the values along one axis.",
        "This is the array whose mean will be computed here.",
        "It is read from its beginning to its end.",
        "The number of the axis along which the mean is taken.",
    ]
