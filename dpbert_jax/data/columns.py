"""Which columns of a file are its texts and its labels: by name, and where names fail, by position.

- Names given, by flags or by the run that a model comes from, are looked for and nothing else.
- Else the column of labels is `label`, or the only one with another usual name.
- Texts are the only column with a usual name, or two that are a usual pair. Where no column has
  one, they are the one or two columns that are left when numbers, dates, ids and the like are taken
  away. Whatever could be read in two ways is refused with the flags that decide.

Case, blanks around a name and a byte-order mark make no difference, unless two columns differ in
nothing else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from dpbert_jax.errors import UserError

SAMPLE_ROWS = 100  # as many rows tell a column of numbers from one of texts

# Without case, blanks, underscores and hyphens: `Sentence_1` is sentence1.
_PAIRS = (
    ("sentence1", "sentence2"), ("sentencea", "sentenceb"), ("text1", "text2"), ("texta", "textb"),
    ("text", "text2"), ("text", "textpair"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("question", "answer"), ("question", "passage"),
    ("question", "context"), ("query", "passage"), ("query", "document"), ("query", "answer"),
    ("context", "response"), ("prompt", "response"),
)  # fmt: skip
_TEXTS = {name for pair in _PAIRS for name in pair} | {
    "abstract", "body", "comment", "commenttext", "content", "description", "headline", "message",
    "post", "review", "reviewbody", "reviewtext", "summary", "title", "tweet", "tweettext",
    "utterance",
}  # fmt: skip
_LABEL = "label"
_OTHER_LABELS = {
    "labels", "labelid", "class", "classes", "target", "targets", "goldlabel", "sentiment",
    "category", "emotion", "intent", "polarity", "rating", "score", "stars", "topic",
}  # fmt: skip
_LABEL_WORDS = {"label", "labels", "class", "target"}  # `label_text` gives the answer away
_UNNAMED = re.compile(r"|unnamed: ?\d+(_level_\d+)?|__index_level_\d+__")
_LAST_WORDS_OF_NO_TEXT = {
    "at", "author", "date", "datetime", "domain", "genre", "id", "ids", "idx", "index", "lang",
    "language", "link", "source", "split", "time", "timestamp", "url", "user", "username", "uuid",
}  # fmt: skip
# "12", "3.5 %", "2024-03-01T10:00:00Z", "10/02/2024 11:30", "1,200"
_NUMBER_OR_DATE = re.compile(r"[\s.,:/+%-]*\d[\d\s.,:/+%TZe-]*")


@dataclass(frozen=True)
class Columns:
    """Names of columns; None where there is none, or where none is named."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(name for name in (self.text, self.text_pair) if name is not None)


def choose_columns(
    path: Path,
    sample: Sequence[dict[str, Any]],
    flags: Columns,
    settled: Columns | None,
    needs_label: bool,
) -> Columns:
    """The columns to read, as the file spells them.

    Args:
        sample: the first rows.
        flags: the columns that the user named, all of which must be there.
        settled: those of the training file, which `flags` may replace one by one.
        needs_label: whether a file without labels is refused; else its `label` is None.

    Raises:
        UserError: a column is missing, or could be one of several.
    """
    names = list(dict.fromkeys(name for row in sample for name in row))
    # Rows of a json file need not have the same columns: what few of them have is not chosen.
    usual = [name for name in names if 2 * sum(name in row for row in sample) >= len(sample)]
    texts = _named_texts(path, names, flags, settled)
    label = _label(path, names, [name for name in usual if name not in texts], flags, settled)
    if label is None and needs_label:
        raise UserError(
            f"{path}: there is no column 'label' among {shortened(names)}; name the column of the "
            "labels with --label_column_name."
        )
    if not texts:
        texts = _texts(path, [name for name in usual if name != label], sample)
    roles = [*texts, label]
    twice = next((name for name in texts if roles.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: column {twice!r:.60} is named as two things; it can be one.")
    return Columns(texts[0], texts[1] if len(texts) == 2 else None, label)


def clean(name: str) -> str:
    """A column's name without what surrounds it unseen."""
    return name.strip().strip("\ufeff").strip()


def _named_texts(
    path: Path, names: list[str], flags: Columns, settled: Columns | None
) -> tuple[str, ...]:
    """The text columns that were named; none where they are still to be chosen."""
    if settled and flags.text_pair and not settled.text_pair:
        raise UserError(
            f"--text_pair_column_name {flags.text_pair}: the model was trained on single texts, "
            f"column {settled.text!r:.60}."
        )
    if flags.text_pair and not (flags.text or settled):
        raise UserError("--text_pair_column_name goes with --text_column_name: give both.")
    both = (
        (flags.text, settled and settled.text, "--text_column_name"),
        (flags.text_pair, settled and settled.text_pair, "--text_pair_column_name"),
    )
    return tuple(
        _find(path, names, ours or theirs or "", flag, by_flag=ours is not None)
        for ours, theirs, flag in both
        if ours or theirs
    )


def _label(
    path: Path, names: list[str], usual: list[str], flags: Columns, settled: Columns | None
) -> str | None:
    if flags.label:
        return _find(path, names, flags.label, "--label_column_name", by_flag=True)
    if settled and settled.label:
        return _spelt(path, names, settled.label, "--label_column_name")
    plain = [name for name in usual if _plain(name) == _LABEL]
    others = [name for name in usual if _plain(name) in _OTHER_LABELS]
    candidates = plain or others
    if len(candidates) > 1:
        raise UserError(
            f"{path}: the labels could be any of {shortened(candidates)}; name the column with "
            "--label_column_name."
        )
    return candidates[0] if candidates else None


def _find(path: Path, names: list[str], name: str, flag: str, by_flag: bool) -> str:
    spelling = _spelt(path, names, name, flag)
    if spelling is None:
        why = f"which {flag} names" if by_flag else "which the training data has"
        other = "" if by_flag else f"; {flag} names another"
        raise UserError(
            f"{path}: there is no column {name!r:.60}, {why}, among {shortened(names)}{other}."
        )
    return spelling


def _spelt(path: Path, names: list[str], name: str, flag: str) -> str | None:
    """How the file spells a name."""
    if name in names:
        return name
    alike = [other for other in names if clean(other).casefold() == clean(name).casefold()]
    if len(alike) > 1:
        raise UserError(
            f"{path}: {shortened(alike)} are all like {name!r:.60}; name one with {flag}."
        )
    return alike[0] if alike else None


def _texts(path: Path, names: list[str], sample: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The text columns among names of which none was given."""
    worded = {name: _words(name, sample) for name in names}
    usual = [name for name in names if _plain(name) in _TEXTS]
    free = [name for name in names if worded[name] and name not in usual and _may_be_text(name)]
    named = [name for name in usual if worded[name]]
    for candidates in (usual, named):
        pair = next(
            (pair for pair in _PAIRS if sorted(map(_plain, candidates)) == sorted(pair)), ()
        )
        if pair:
            return tuple(sorted(candidates, key=lambda name: pair.index(_plain(name))))
    if len(named) == 1:
        return (named[0],)
    if len(usual) == 1 and not free:  # of numbers, but by its name a text
        return (usual[0],)
    if not usual and len(free) == 1:
        return (free[0],)
    # A column of phrases beside one of single words: the words may be a text, or a category.
    if not usual and len(free) == 2 and len({_has_phrases(worded[name]) for name in free}) == 1:
        return tuple(free)
    if not usual and not free:
        raise UserError(
            f"{path}: no text column in {shortened(names)}: none has a usual name, such as 'text', "
            "or other values than numbers, dates and ids; --text_column_name names any."
        )
    raise UserError(
        f"{path}: the text could be in any of {shortened([*usual, *free])}; name its column with "
        "--text_column_name, and of a pair the second with --text_pair_column_name."
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", clean(name).casefold())


def _may_be_text(name: str) -> bool:
    """Whether a column without a usual name may be read for its position."""
    if _UNNAMED.fullmatch(clean(name).casefold()) or _plain(name) in _OTHER_LABELS:
        return False
    # At capitals as well: `pairID`.
    split = re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", clean(name))
    words = [word.casefold() for word in split if word]
    return not (_LABEL_WORDS & set(words) or _LAST_WORDS_OF_NO_TEXT & set(words[-1:]))


def _words(name: str, sample: Sequence[dict[str, Any]]) -> list[str]:
    """The values that are texts in words; none where most values are not."""
    values = [row[name] for row in sample if row.get(name) is not None]
    filled = [value for value in values if not isinstance(value, str) or value.strip()]
    words = [
        value
        for value in filled
        if isinstance(value, str) and not _NUMBER_OR_DATE.fullmatch(value.strip())
    ]
    return words if 2 * len(words) >= len(filled) else []


def _has_phrases(values: list[str]) -> bool:
    return any(re.search(r"\s", value.strip()) for value in values)
