"""The built-in dataset of long texts: which package does a page of documentation come from?

A document is prose of one source file: sentences of its docstrings, parameters' descriptions
included, in the file's order, 100 to 380 words as a hash of its place draws it (119 to 551 word
pieces, by MiniLM's tokenizer). No sentence names a package, and none is in two documents. All
documents of a file are in one split, and near-duplicates are left out, within and across classes
and splits.

The rows depend on the versions of the installed packages, as those of `data.docstrings` do.
"""

import functools
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

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

TASK_NAME = "documents"
SPEC = TaskSpec(TASK_NAME, ("document",), SOURCES, ("accuracy",))

TRAIN_PER_CLASS = 250
VALIDATION_PER_CLASS = 50
CANDIDATES_PER_CLASS = 400  # enough to lose some as near-duplicates
WORDS = (100, 380)  # of a document: the fewest, and the most that are drawn


@functools.cache  # reading takes seconds, and a run asks for it twice
def load_documents() -> TaskData:
    """The dataset: "train" and "validation"; of some packages there are fewer than of others.

    Raises UserError where a package is not installed.
    """
    seen: set[frozenset[str]] = set()
    found = [
        candidate
        for label, name in enumerate(SOURCES)
        for candidate in _candidates(label, name, seen)
    ]
    file_of = {candidate.rank: file for candidate, file in found}
    splits: dict[str, list[Candidate]] = {"train": [], "validation": []}
    split_of: dict[str, str] = {}  # of a file
    taken: Counter[tuple[int, str]] = Counter()
    for candidate in without_near_duplicates([candidate for candidate, _ in found]):
        file, full = file_of[candidate.rank], taken[candidate.label, "validation"]
        wanted = "validation" if full < VALIDATION_PER_CLASS else "train"
        split = split_of.setdefault(file, wanted)
        most = VALIDATION_PER_CLASS if split == "validation" else TRAIN_PER_CLASS
        if taken[candidate.label, split] < most:
            taken[candidate.label, split] += 1
            splits[split].append(candidate)
    return TaskData(SPEC, {name: examples(rows) for name, rows in splits.items()})


def block_sentences(docstring: str) -> Iterator[str]:
    """The plain English sentences of a docstring, of what is indented alike by itself."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        for _, block in groupby(paragraph.split("\n"), lambda line: len(line) - len(line.lstrip())):
            lines: list[str] = []
            for line in block:
                if UNDERLINE.fullmatch(line.strip()):
                    del lines[-1:]  # the line above was a heading
                else:
                    lines.append(line)
            for sentence in SENTENCE_END.split(" ".join(" ".join(lines).split())):
                if is_prose(sentence):
                    yield sentence


def _candidates(
    label: int, name: str, seen: set[frozenset[str]]
) -> Iterator[tuple[Candidate, str]]:
    """Documents of one package, each with its file; `seen` are the sentences taken so far."""
    folder, count = package_folder(name), 0
    for path in source_files(folder):
        sentences = []
        for docstring in docstrings_of(path):
            for sentence in block_sentences(docstring):
                words = word_set(sentence)
                if words not in seen and not names_its_package(sentence):
                    seen.add(words)
                    sentences.append(sentence)
        file = f"{name}/{path.relative_to(folder).as_posix()}"
        for number, text in enumerate(_documents(sentences, file)):
            # The file's hash first: its documents follow one another in order of rank.
            yield Candidate(f"{digest(file)}{number:06}", label, text, word_set(text)), file
            count += 1
        if count >= CANDIDATES_PER_CLASS:
            return


def _documents(sentences: list[str], file: str) -> Iterator[str]:
    """A file's sentences as documents; what is left at its end may be too little for one."""
    fewest, most = WORDS
    document: list[str] = []
    number = words = 0
    for sentence in sentences:
        document.append(sentence)
        words += len(sentence.split())
        wanted = fewest + int(digest(f"{file} {number}"), 16) % (most - fewest)
        if words >= wanted:
            yield " ".join(document)
            document, number, words = [], number + 1, 0
    if words >= fewest:
        yield " ".join(document)
