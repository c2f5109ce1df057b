"""The serving snippets of docs/export.md run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

from dpbert_jax.export.arguments import ExportArguments
from dpbert_jax.export.command import export
from dpbert_jax.export_formats import export_format_names

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("form", export_format_names())
def test_a_snippet_serves_what_was_exported(form, tiny_run, tmp_path):
    if form == "huggingface":
        pytest.importorskip("torch", reason="torch is not installed")
    export(ExportArguments(str(tiny_run), format=form, output_dir=str(tmp_path / "out")))
    asked = f"exports/mrpc-{form}"
    (snippet,) = [code for code in SNIPPETS if asked in code]
    assert len(snippet.strip().splitlines()) <= 14
    names: dict = {}
    exec(snippet.replace(asked, str(tmp_path / "out")), names)
    made = names.get("made")
    plans = names["layer_mask"] if form == "onnx" else np.asarray(made["layer_mask"])
    assert plans.shape[1] == 3
    assert (plans[:, 0] == 1).all()
