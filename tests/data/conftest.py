"""Inputs shared by the tests of the data room."""

import os
from pathlib import Path

import pytest
from transformers import BertTokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = "the a cat dog sat ran on mat in sun and it was good bad film ##s ##ing walk"


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The published GLUE files, which are not part of the project."""
    folder = Path(os.environ.get("GLUE_DIR") or REPOSITORY.parent / "shared" / "data" / "glue")
    if not folder.is_dir():
        pytest.skip(f"no GLUE files in {folder}: set GLUE_DIR")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizer:
    """A WordPiece tokenizer of two dozen words."""
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text("\n".join([*specials, *WORDS.split()]) + "\n")
    return BertTokenizer(str(path))
