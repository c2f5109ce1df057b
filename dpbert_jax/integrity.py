"""Checksums of a model's folder: a changed byte is noticed when the folder is loaded, and named.

`SHA256SUMS` is what `sha256sum` writes and `sha256sum -c` reads. A folder without one (a download,
a model of one's own) is loaded unchecked. Hashing the 440 MB of BERT-base takes 0.74 s on a core
with SHA instructions, and is about a third of the time that `load_params` then takes in all.
"""

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath

from dpbert_jax.errors import UserError
from dpbert_jax.run_folder import TRAIN_CONFIG

SUMS = "SHA256SUMS"
# What loading a folder reads, besides what only exports have; none may be there unlisted.
MODEL_FILES = (
    "config.json",
    TRAIN_CONFIG,
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def inside(folder: Path, name: object, source: Path) -> Path:
    """The path of a file of the folder that `source` names.

    Raises:
        UserError: the name leads out of the folder, or is none.
    """
    if not isinstance(name, str) or not _is_plain(name):
        raise UserError(
            f"{source} names the file {name!r}, which is not the plain name of a file beside it: "
            "nothing outside the folder is read."
        )
    return folder / name


def _is_plain(name: str) -> bool:
    # Both kinds of separators: a folder travels between systems.
    names = (PurePosixPath(name).name, PureWindowsPath(name).name, name)
    return name not in ("", "..") and name.isprintable() and len(set(names)) == 1


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_files(folder: Path) -> list[str]:
    """The names of what is there of the model itself: not metrics, checkpoints, notes."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in MODEL_FILES)
    )


def is_weights(name: str) -> bool:
    return ".safetensors" in name


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in one move: a crash leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    """Writes the folder's `SHA256SUMS`: digests by file name."""
    text = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    write_whole(folder / SUMS, text)


def seal(folder: Path) -> None:
    """Writes `SHA256SUMS` over every file of a folder that is finished."""
    paths = [path for path in folder.iterdir() if path.is_file() and path.name != SUMS]
    write_sums(folder, {path.name: digest(path) for path in paths})


def update_sums(folder: Path, names: Iterable[str]) -> None:
    """Lists these files as they are now; a folder that has no sums gets none."""
    sums = read_sums(folder)
    if sums is not None:
        write_sums(folder, sums | {name: digest(folder / name) for name in names})


def read_sums(folder: Path) -> dict[str, str] | None:
    """Digests by file name; None where the folder has no `SHA256SUMS`.

    Raises:
        UserError: it is no list of this folder's files.
    """
    path = folder / SUMS
    try:
        # Not as text: that would make every kind of line ending the same.
        lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(_refusal(folder, f"{path} is damaged", [])) from error
    sums = {}
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        if found is None:
            problem = f"{path} line {number} is not as `sha256sum` writes it"
            raise UserError(_refusal(folder, problem, []))
        sums[inside(folder, found[2], path).name] = found[1]
    return sums


def verify(folder: Path, concerned: Callable[[str], bool] = lambda name: True) -> None:
    """Checks the files of the folder that `concerned` picks by name; without sums, nothing.

    Raises:
        UserError: a file has changed, is gone, or was added; it is named.
    """
    sums = read_sums(folder)
    if sums is None:
        return
    for name in filter(concerned, sorted({*sums, *model_files(folder)})):
        path = folder / name
        if name not in sums:
            problem = f"{path} is not listed in its {SUMS}: it was added later"
        elif not path.is_file():
            problem = f"{path} is missing, but listed in its {SUMS}"
        elif digest(path) != sums[name]:
            problem = f"{path} is not what its {SUMS} lists: one of the two has been changed"
        else:
            continue
        raise UserError(_refusal(folder, problem, sums))


def _refusal(folder: Path, problem: str, listed: Iterable[str]) -> str:
    """The sentence that refuses a folder: what is wrong, and the two ways on."""
    there = {name for name in listed if name != SUMS and (folder / name).is_file()}
    files = shlex.join(sorted(there.union(model_files(folder))))
    return (
        f"{problem}. Put back the folder as it was written (what was killed as it was saved is "
        "mended by running it again, train.py with --resume), or, if the change is your own, "
        f"accept it: (cd {shlex.quote(str(folder))} && sha256sum {files} > {SUMS})."
    )
