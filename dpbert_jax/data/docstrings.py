"""The built-in dataset: which package does a sentence of documentation come from?

Real English sentences, read at run time from the docstrings of packages that this project depends
on, and of Python's standard library (`data.package_text`). It is there so that every command can be
tried without a network, on a task that is neither trivial nor hopeless: sentences that name a
package are left out, and so are near-duplicates, within and across classes and splits.

The rows depend on the versions of the installed packages: the same in one environment, similar in
another. Compare scores within one environment only.
"""

import functools
import inspect
import logging
import re
from collections import Counter
from collections.abc import Iterator

from dpbert_jax.data.package_text import (
    SENTENCE_END,
    SOURCES,
    UNDERLINE,
    Candidate,
    digest,
    docstrings_of,
    examples,
    is_prose,
    names_its_package,
    package_folder,
    source_files,
    without_near_duplicates,
    word_set,
)
from dpbert_jax.data.tasks import TaskData, TaskSpec

logger = logging.getLogger(__name__)

TASK_NAME = "docstrings"
SPEC = TaskSpec(TASK_NAME, ("sentence",), SOURCES, ("accuracy",))

TRAIN_PER_CLASS = 700
VALIDATION_PER_CLASS = 100
# Two bounds on the reading, which is nearly all parsing, so that it takes seconds. It stops at so
# many sentences of a package, enough to lose some as near-duplicates; and it passes over files
# with fewer docstrings than one in so many bytes.
CANDIDATES_PER_CLASS = 1000
BYTES_PER_DOCSTRING = 3000.0


@functools.cache  # reading takes seconds, and a run asks for it twice
def load_docstrings() -> TaskData:
    """The dataset: "train" and "validation", about as many sentences of every package in each.

    Raises UserError where a package is not installed.
    """
    candidates = [
        candidate for label, name in enumerate(SOURCES) for candidate in _candidates(label, name)
    ]
    splits: dict[str, list[Candidate]] = {"train": [], "validation": []}
    taken: Counter[int] = Counter()
    for candidate in without_near_duplicates(candidates):
        # In order of rank, so that which of them go to validation is a matter of the hash.
        taken[candidate.label] += 1
        if taken[candidate.label] <= VALIDATION_PER_CLASS:
            splits["validation"].append(candidate)
        elif taken[candidate.label] <= VALIDATION_PER_CLASS + TRAIN_PER_CLASS:
            splits["train"].append(candidate)
    for label, name in enumerate(SOURCES):
        if taken[label] < VALIDATION_PER_CLASS + TRAIN_PER_CLASS:
            logger.warning("docstrings: only %d sentences of %s.", taken[label], name)
    return TaskData(SPEC, {name: examples(rows) for name, rows in splits.items()})


def prose_sentences(docstring: str) -> Iterator[str]:
    """The plain English sentences of a docstring: no code, tables, parameter lists or markup."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines: list[str] = []
        for line in paragraph.split("\n"):
            if UNDERLINE.fullmatch(line):
                del lines[-1:]  # the line above was a heading
            else:
                lines.append(line)
        # Whatever is indented is a parameter's description, a list or a block of code.
        if any(line[:1].isspace() for line in lines):
            continue
        for sentence in SENTENCE_END.split(" ".join(lines)):
            if is_prose(sentence):
                yield " ".join(sentence.split())


def _candidates(label: int, name: str) -> list[Candidate]:
    """Sentences of one package, each set of words once, up to a few over CANDIDATES_PER_CLASS."""
    found: dict[frozenset[str], str] = {}
    for path in source_files(package_folder(name)):
        for docstring in docstrings_of(path, BYTES_PER_DOCSTRING):
            for sentence in prose_sentences(docstring):
                if not names_its_package(sentence):
                    found.setdefault(word_set(sentence), sentence)
        if len(found) >= CANDIDATES_PER_CLASS:
            break
    return [
        Candidate(digest(" ".join(sorted(words))), label, sentence, words)
        for words, sentence in found.items()
    ]
