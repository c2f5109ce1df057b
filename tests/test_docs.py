"""The Python of the documents runs as it stands, in a folder that holds what it names."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.export_formats import export_format_names
from dpbert_jax.hub import load_tokenizer, save_folder
from dpbert_jax.model import Model

ROOT = Path(__file__).parents[1]
RUN = "runs/mrpc"
EXPORTS = {form: f"exports/mrpc-{form}" for form in export_format_names()}
# What does not run here, by its page and its first line: the reason, or None where it does run.
CANNOT_RUN = {
    ("docs/export.md", "import torch"): None
    if importlib.util.find_spec("torch")
    else "torch is not installed",
}


def blocks_of(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def first_line(block):
    return block.splitlines()[0]


PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md"))))
BLOCKS = {page: blocks for page in PAGES if (blocks := blocks_of(page))}


@pytest.fixture
def here(tmp_path, tiny_folder, random_params, monkeypatch):
    """The working folder, with a model that was never trained where the documents have a run."""
    config = DPBertConfig(TINY, PlannerConfig(), Calibration((0.4, 1.0), (0.25, -6.0)))
    save_folder(tmp_path / RUN, config, random_params(config), load_tokenizer(tiny_folder))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_served(form, names):
    """What a snippet of docs/export.md leaves behind: plans, in which the stem always runs."""
    plans = names["layer_mask"] if form == "onnx" else np.asarray(names["made"]["layer_mask"])
    assert plans.shape[1] == TINY.num_hidden_layers
    assert (plans[:, 0] == 1).all()


@pytest.mark.parametrize("page", BLOCKS)
def test_a_page_runs(page, here):
    names: dict = {}
    for block in BLOCKS[page]:
        if CANNOT_RUN.get((page, first_line(block))):
            continue
        served = [form for form, folder in EXPORTS.items() if folder in block]
        for form in served:
            Model.from_pretrained(RUN).export(form, EXPORTS[form])
        exec(compile(block, page, "exec"), names)
        for form in served:
            check_served(form, names)


@pytest.mark.parametrize("form", EXPORTS)
def test_every_format_has_a_short_snippet_that_serves_it(form):
    (snippet,) = [block for block in BLOCKS["docs/export.md"] if EXPORTS[form] in block]
    assert len(snippet.strip().splitlines()) <= 14


def test_what_is_listed_is_there():
    every = {(page, first_line(block)) for page, blocks in BLOCKS.items() for block in blocks}
    assert set(CANNOT_RUN) <= every


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_missed_for_the_way_it_is_fenced(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(re.findall(r"[`~]{3,}\s*(?:py|\{)", text)) == len(blocks_of(page))
