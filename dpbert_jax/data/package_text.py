"""Prose in the docstrings of installed packages: what the built-in datasets are made of.

Nothing is downloaded, and nothing is imported or executed: source files are parsed only.
"""

import ast
import hashlib
import importlib.util
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

from dpbert_jax.data.tasks import Examples
from dpbert_jax.errors import UserError

SOURCES = ("jax", "matplotlib", "numpy", "pandas", "python", "scipy", "sklearn", "transformers")
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
UNDERLINE = re.compile(r"([-=~^+*\"'.#])\1{2,}\s*")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class Candidate:
    """A text of one package, and what tells whether it is nearly another one."""

    rank: str  # a hash: an order that has nothing to do with files or packages
    label: int
    text: str
    words: frozenset[str]


def word_set(sentence: str) -> frozenset[str]:
    """The words that near-duplicates are judged by: no case, punctuation or digits."""
    return frozenset(re.findall("[a-z]+", sentence.lower()))


def is_prose(sentence: str) -> bool:
    """Whether it is a plain English sentence: no code, table, list or markup."""
    words = sentence.removesuffix(".").split()
    return (
        6 <= len(words) <= 40
        and sentence[0].isupper()
        and sentence.endswith(".")
        and not _MARKUP.search(sentence)
        and sum(bool(_PLAIN_WORD.fullmatch(word)) for word in words) >= 0.85 * len(words)
    )


def names_its_package(sentence: str) -> bool:
    """Whether a look at a name would tell where it comes from."""
    return bool(_GIVE_AWAY.search(sentence))


def package_folder(name: str) -> Path:
    """Where one of `SOURCES` lies.

    Raises:
        UserError: it is not installed.
    """
    if name == "python":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(name)  # of a top-level name: finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"The built-in datasets read the package {name}, which is not installed: "
            f"pip install {'scikit-learn' if name == 'sklearn' else name}."
        )
    return Path(spec.submodule_search_locations[0])


def source_files(folder: Path) -> list[Path]:
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
    return [folder / name for name in sorted(kept, key=digest)]


def docstrings_of(path: Path, bytes_per_docstring: float = math.inf) -> Iterator[str]:
    """Docstrings of the module, its classes, functions and methods, in the order of the file.

    None of a file that has fewer than one in so many bytes, or that this Python cannot parse:
    templates and samples of other versions lie about in packages.
    """
    try:
        source = path.read_bytes()
        if source.count(b'"""') // 2 * bytes_per_docstring < len(source):
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


def without_near_duplicates(candidates: list[Candidate]) -> Iterator[Candidate]:
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
        if any(is_near(words, other) for word in prefix for other in kept_with[word]):
            continue
        for word in prefix:
            kept_with[word].append(words)
        yield candidate


def is_near(a: frozenset[str], b: frozenset[str]) -> bool:
    return len(a & b) >= NEAR_DUPLICATE * len(a | b)


def examples(candidates: list[Candidate]) -> Examples:
    """Rows of these texts, their packages' numbers in `SOURCES` as labels."""
    return Examples(
        text_a=[candidate.text for candidate in candidates],
        text_b=None,
        labels=np.asarray([candidate.label for candidate in candidates], np.int32),
    )


def digest(text: str) -> str:
    """A hash to sort by."""
    return hashlib.sha256(text.encode()).hexdigest()
