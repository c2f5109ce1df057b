"""`Model.export` and the formats behind it: found by name, one file and one row each."""

import dataclasses
import json
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import jax
import pytest

from dpbert_jax import export_formats
from dpbert_jax.config_file import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.export.arguments import ExportArguments
from dpbert_jax.export.command import export
from dpbert_jax.export.formats import ExportOptions, Format
from dpbert_jax.export_formats import GROUP, export_format, export_format_names
from dpbert_jax.model import Model

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(scope="module")
def model(tiny_run):
    return Model.from_pretrained(tiny_run)


def content(folder):
    """The bytes of a folder's files; of a program its text, less the lines of code it came from."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "model.stablehlo" in files:
        del files["SHA256SUMS"]
        program = jax.export.deserialize(bytearray(files["model.stablehlo"]))
        lines = program.mlir_module().splitlines()
        kept = [re.sub(r"loc\(.*", "", line) for line in lines if not line.startswith("#loc")]
        assert len(kept) > 500
        files["model.stablehlo"] = "\n".join(kept)
    return files


def test_what_is_installed_is_what_the_project_names():
    rows = tomllib.loads(PROJECT.read_text())["project"]["entry-points"][GROUP]
    assert set(export_format_names()) >= set(rows), "install the project anew"
    for name in rows:
        assert export_format(name).name == name


@pytest.mark.parametrize("form", ["huggingface", "onnx", "stablehlo"])
def test_the_model_exports_what_the_command_does(form, model, tiny_run, tmp_path):
    before = model.config, model.tokenizer.model_max_length
    model.export(form, tmp_path / "one", default_budget=0.5)
    other = str(tmp_path / "other")
    export(ExportArguments(str(tiny_run), form, other, default_budget=0.5))
    assert content(tmp_path / "one") == content(tmp_path / "other")
    assert read_config(tmp_path / "one").default_budget == 0.5
    assert (model.config, model.tokenizer.model_max_length) == before


def test_what_was_exported_cuts_where_the_model_does(model, tmp_path):
    short = dataclasses.replace(model, max_seq_length=12, folder=None)
    short.export("huggingface", tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"]
        == json.loads((tmp_path / "out" / "export_config.json").read_text())["max_seq_length"]
    )
    again = Model.from_pretrained(tmp_path / "out")
    assert again.max_seq_length == 12
    texts = ["the cat sat on the mat", "a film and it was good " * 4]
    assert again.predict(texts, budget=0.7) == short.predict(texts, budget=0.7)


def test_another_package_may_bring_a_format(model, tmp_path, monkeypatch):
    def write(folder, model, options):
        (folder / "layers.txt").write_text(f"{model.config.encoder.num_hidden_layers} {options}")

    own = Format("layers", write, lambda folder, model, options: None, takes_int8=True)
    row = EntryPoint("layers", "elsewhere:FORMAT", GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: own)
    monkeypatch.setattr(export_formats, "entry_points", lambda group: [row] * (group == GROUP))
    model.export("layers", tmp_path / "out", plan_rule="top_k", int8=True)
    text = (tmp_path / "out" / "layers.txt").read_text()
    assert text == "3 " + repr(ExportOptions("top_k", int8=True))
    made = json.loads((tmp_path / "out" / "export_config.json").read_text())
    assert (made["format"], made["plan_rule"], made["int8"]) == ("layers", "top_k", True)
    assert "layers.txt" in (tmp_path / "out" / "SHA256SUMS").read_text()
    with pytest.raises(UserError, match=r"--format is 'onnx', but must be one of \['layers'\]"):
        model.export("onnx", tmp_path / "more")


def test_what_cannot_be_exported_is_refused_and_nothing_written(model, tmp_path, monkeypatch):
    for flags, words in (
        ({"format": "torchscript"}, "--format is 'torchscript', but must be one of"),
        ({"format": "stablehlo", "int8": True}, "--int8 is not for --format stablehlo"),
        ({"format": "stablehlo", "int8_all": True}, "--int8_all is not for --format stablehlo"),
        (
            {"format": "huggingface", "standard_operators": True},
            "--standard_operators is not for --format huggingface",
        ),
        ({"format": "onnx", "plan_rule": "best"}, "--plan_rule is 'best'"),
        ({"format": "onnx", "default_budget": 0.1}, r"--default_budget is 0\.1"),
    ):
        with pytest.raises(UserError, match=words):
            model.export(folder=tmp_path / "out", **flags)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is in use"):
        model.export("onnx", tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        model.export("onnx", tmp_path / "file" / "out")
    monkeypatch.setattr(export_formats, "entry_points", lambda group: [])
    with pytest.raises(UserError, match=r"No export format .* install dpbert-jax anew"):
        model.export("onnx", tmp_path / "out")
