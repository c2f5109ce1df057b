"""Folders in a bucket (gs://, s3://, any URL of fsspec): worked on locally, copied there and back.

Files are what travels. An object store knows no folder that appears in one move, so a copy may be
cut off half-way; whoever reads a checkpoint or a model checks its sums.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from dpbert_jax.errors import UserError

CACHE = "DPBERT_JAX_BUCKETS"  # where local copies lie; default: ~/.cache/dpbert_jax/buckets


def is_url(path: str) -> bool:
    return "://" in path


class BucketFolder:
    """A folder in a bucket with its local copy.

    Raises:
        UserError: from everything here, where the bucket cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        name = hashlib.sha256(self._url.encode()).hexdigest()[:16]
        cache = os.environ.get(CACHE, "~/.cache/dpbert_jax/buckets")
        self.local = Path(cache).expanduser() / name
        self._pushed: dict[str, tuple[int, int]] = {}  # size and time of what lies in the bucket
        with self._explained():
            self._files, self._root = fsspec.core.url_to_fs(self._url)

    def pull(self) -> None:
        """Makes the local copy anew from what the bucket has; empty where it has nothing."""
        shutil.rmtree(self.local, ignore_errors=True)
        self.local.mkdir(parents=True)
        with self._explained():
            self._files.invalidate_cache()
            for name in self._names():
                target = self.local / name
                if not target.resolve().is_relative_to(self.local.resolve()):
                    raise UserError(f"{self._url} holds the name {name}, outside of its folder.")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._root}/{name}", str(target))
        self._pushed = self._local_files()

    def push(self) -> None:
        """Copies what is new or has changed since, and removes what is gone.

        Files are removed, not the folders that a store with folders leaves empty.
        """
        found = self._local_files()
        with self._explained():
            for name, state in found.items():
                # An old checkpoint may have been removed meanwhile: the next push sees that.
                if self._pushed.get(name) != state and (self.local / name).exists():
                    target = f"{self._root}/{name}"
                    self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                    self._files.put_file(str(self.local / name), target)
                    self._pushed[name] = state
            for name in self._pushed.keys() - found.keys():
                self._files.rm_file(f"{self._root}/{name}")
                del self._pushed[name]

    def _names(self) -> list[str]:
        if not self._files.exists(self._root):
            return []
        found = self._files.find(self._root)
        return sorted(str(path)[len(self._root) :].lstrip("/") for path in found)

    def _local_files(self) -> dict[str, tuple[int, int]]:
        files = {}
        for path in sorted(self.local.rglob("*")):
            # What orbax has not finished is not there yet.
            if "orbax-checkpoint-tmp" in str(path) or not path.is_file():
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:  # an old checkpoint, removed meanwhile
                continue
            files[path.relative_to(self.local).as_posix()] = (stat.st_size, stat.st_mtime_ns)
        return files

    @contextmanager
    def _explained(self) -> Iterator[Any]:
        try:
            yield
        except UserError:
            raise
        except ImportError as error:
            raise UserError(f"{self._url}: {error}. Install the package that it names.") from error
        except Exception as error:  # each store has errors of its own
            raise UserError(
                f"{self._url} cannot be used ({type(error).__name__}: {error}); check its name and "
                "your rights to it."
            ) from error
