"""The built-in dataset: which package does a sentence of documentation come from?

Real English sentences, read at run time from the docstrings of packages that this project depends
on, and of Python's standard library. Nothing is downloaded, and nothing is imported or executed:
source files are parsed only. It is there so that every command can be tried without a network, on
a task that is neither trivial nor hopeless: sentences that name a package are left out, and so are
near-duplicates, within and across classes and splits.

The rows depend on the versions of the installed packages: the same in one environment, similar in
another. Compare scores within one environment only.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import logging
import math
import os
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpbert_jax.data.tasks import Examples, TaskData, TaskSpec
from dpbert_jax.errors import UserError

logger = logging.getLogger(__name__)

TASK_NAME = "docstrings"
SOURCES = ("jax", "matplotlib", "numpy", "pandas", "python", "scipy", "sklearn", "transformers")
SPEC = TaskSpec(TASK_NAME, ("sentence",), SOURCES, ("accuracy",))

TRAIN_PER_CLASS = 700
VALIDATION_PER_CLASS = 100
# Two bounds on the reading, which is nearly all parsing, so that it takes seconds. It stops at so
# many sentences of a package, enough to lose some as near-duplicates; and it passes over files
# with fewer docstrings than one in so many bytes.
CANDIDATES_PER_CLASS = 1000
BYTES_PER_DOCSTRING = 3000
NEAR_DUPLICATE = 0.7  # from this Jaccard similarity of the word sets on

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_vendor", "ensurepip", "idlelib", "lib2to3", "turtledemo"}
    | {"site-packages", "dist-packages"}  # they lie inside of the standard library's folder
)
# Names of the packages and their usual aliases: with them, a look would do for a model.
_GIVE_AWAY = re.compile(
    r"jax|matplotlib|pyplot|numpy|pandas|python|scipy|sklearn|scikit|transformers|hugging|"
    r"\b(np|jnp|plt|mpl|pd|sp|tf|lax|hf)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"[`=_\[\]{}<>|\\@#*/$~^]|::|http|\.\.")
_PLAIN_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[,;:]?")
_UNDERLINE = re.compile(r"([-=~^+*\"'.#])\1{2,}\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class _Candidate:
    rank: str  # a hash of the words: an order that has nothing to do with files or packages
    label: int
    sentence: str
    words: frozenset[str]


@functools.cache  # reading takes seconds, and a run asks for it twice
def load_docstrings() -> TaskData:
    """The dataset: "train" and "validation", about as many sentences of every package in each.

    Raises UserError where a package is not installed.
    """
    candidates = [
        candidate for label, name in enumerate(SOURCES) for candidate in _candidates(label, name)
    ]
    splits: dict[str, list[_Candidate]] = {"train": [], "validation": []}
    taken: Counter[int] = Counter()
    for candidate in _without_near_duplicates(candidates):
        # In order of rank, so that which of them go to validation is a matter of the hash.
        taken[candidate.label] += 1
        if taken[candidate.label] <= VALIDATION_PER_CLASS:
            splits["validation"].append(candidate)
        elif taken[candidate.label] <= VALIDATION_PER_CLASS + TRAIN_PER_CLASS:
            splits["train"].append(candidate)
    for label, name in enumerate(SOURCES):
        if taken[label] < VALIDATION_PER_CLASS + TRAIN_PER_CLASS:
            logger.warning("docstrings: only %d sentences of %s.", taken[label], name)
    return TaskData(SPEC, {name: _examples(rows) for name, rows in splits.items()})


def prose_sentences(docstring: str) -> Iterator[str]:
    """The plain English sentences of a docstring: no code, tables, parameter lists or markup."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines: list[str] = []
        for line in paragraph.split("\n"):
            if _UNDERLINE.fullmatch(line):
                del lines[-1:]  # the line above was a heading
            else:
                lines.append(line)
        # Whatever is indented is a parameter's description, a list or a block of code.
        if any(line[:1].isspace() for line in lines):
            continue
        for sentence in _SENTENCE_END.split(" ".join(lines)):
            if _is_prose(sentence):
                yield " ".join(sentence.split())


def word_set(sentence: str) -> frozenset[str]:
    """The words that near-duplicates are judged by: no case, punctuation or digits."""
    return frozenset(re.findall("[a-z]+", sentence.lower()))


def _is_prose(sentence: str) -> bool:
    words = sentence.removesuffix(".").split()
    return (
        6 <= len(words) <= 40
        and sentence[0].isupper()
        and sentence.endswith(".")
        and not _MARKUP.search(sentence)
        and sum(bool(_PLAIN_WORD.fullmatch(word)) for word in words) >= 0.85 * len(words)
    )


def _candidates(label: int, name: str) -> list[_Candidate]:
    """Sentences of one package, each set of words once, up to a few over CANDIDATES_PER_CLASS."""
    found: dict[frozenset[str], str] = {}
    for path in _source_files(_package_folder(name)):
        for docstring in _docstrings(path):
            for sentence in prose_sentences(docstring):
                if not _GIVE_AWAY.search(sentence):
                    found.setdefault(word_set(sentence), sentence)
        if len(found) >= CANDIDATES_PER_CLASS:
            break
    return [
        _Candidate(_hash(" ".join(sorted(words))), label, sentence, words)
        for words, sentence in found.items()
    ]


def _package_folder(name: str) -> Path:
    if name == "python":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(name)  # of a top-level name: finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"The docstrings dataset reads the package {name}, which is not installed: "
            f"pip install {'scikit-learn' if name == 'sklearn' else name}."
        )
    return Path(spec.submodule_search_locations[0])


def _source_files(folder: Path) -> list[Path]:
    """The package's own source files, in the order of a hash of their paths inside of it.

    Reading stops early, and in that order it stops with a sample of the whole package.
    """
    kept: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        inside = Path(parent).relative_to(folder)
        kept += [
            (inside / name).as_posix()
            for name in files
            if name.endswith(".py") and not name.startswith("test_")
        ]
    return [folder / name for name in sorted(kept, key=_hash)]


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings of the module, its classes, functions and methods, in the order of the file.

    None of a file that has too few of them for its size, or that this Python cannot parse:
    templates and samples of other versions lie about in packages.
    """
    try:
        source = path.read_bytes()
        if source.count(b'"""') // 2 * BYTES_PER_DOCSTRING < len(source):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another package's escape sequences are not our matter
            nodes: list[ast.AST] = [ast.parse(source)]
    except (OSError, SyntaxError, ValueError):
        return
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield docstring
            nodes += reversed(node.body)


def _without_near_duplicates(candidates: list[_Candidate]) -> Iterator[_Candidate]:
    """In order of rank, those that are no near-duplicate of one that was kept before.

    Exact, and far from all pairs: with their words in any fixed order, sets of Jaccard similarity
    t or more share a word among the first `len(words) - ceil(t * len(words)) + 1` of each (prefix
    filtering; Chaudhuri et al., ICDE 2006). Rarest words first keeps the lists short.
    """
    frequency = Counter(word for candidate in candidates for word in candidate.words)
    kept_with: defaultdict[str, list[frozenset[str]]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda candidate: (candidate.rank, candidate.label)):
        words = candidate.words
        rarest_first = sorted(words, key=lambda word: (frequency[word], word))
        prefix = rarest_first[: len(words) - math.ceil(NEAR_DUPLICATE * len(words)) + 1]
        if any(_is_near(words, other) for word in prefix for other in kept_with[word]):
            continue
        for word in prefix:
            kept_with[word].append(words)
        yield candidate


def _is_near(a: frozenset[str], b: frozenset[str]) -> bool:
    return len(a & b) >= NEAR_DUPLICATE * len(a | b)


def _examples(candidates: list[_Candidate]) -> Examples:
    return Examples(
        text_a=[candidate.sentence for candidate in candidates],
        text_b=None,
        labels=np.asarray([candidate.label for candidate in candidates], np.int32),
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
