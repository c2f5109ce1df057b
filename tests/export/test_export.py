"""`dpbert export`: artifacts, their proof, and what is refused."""

import dataclasses
import importlib.util
import json
from importlib.metadata import version

import numpy as np
import onnxruntime
import pytest
from transformers import AutoTokenizer

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.export import command as cli
from dpbert_jax.export import onnx_format
from dpbert_jax.export.arguments import ExportArguments
from dpbert_jax.export.formats import ExportOptions
from dpbert_jax.export.torch_folder import CODE
from dpbert_jax.export.verify import TOLERANCE, on_edge
from dpbert_jax.export_formats import export_format
from dpbert_jax.inference import Rule
from dpbert_jax.model import Model

FILES = {
    "huggingface": {"model.safetensors", *CODE},
    "onnx": {"model.onnx"},
    "stablehlo": {"model.stablehlo"},
}


def flags(run, output, form="onnx", **changes):
    return ExportArguments(str(run), output_dir=str(output), format=form, **changes)


@pytest.mark.parametrize("form", FILES)
def test_a_run_is_exported_and_verified(form, tiny_run, tmp_path, capsys):
    if form == "huggingface":
        pytest.importorskip("torch", reason="torch is not installed")
    assert cli.export(flags(tiny_run, tmp_path / "out", form, verify=True))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= FILES[form] | {"config.json", "tokenizer.json", "SHA256SUMS"}
    config = read_config(tmp_path / "out")
    assert config == dataclasses.replace(read_config(tiny_run), default_budget=0.75)
    made = json.loads((tmp_path / "out" / "export_config.json").read_text())
    assert (made["format"], made["int8"], made["default_budget"]) == (form, False, 0.75)
    assert (made["max_seq_length"], made["max_position_embeddings"]) == (16, 32)
    assert made["plan_rule"] == (None if form == "huggingface" else "threshold")
    assert made["versions"]["dpbert-jax"] == version("dpbert-jax")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shown = capsys.readouterr().out
    assert "validation: 20 inputs" in shown
    rows = [line.split() for line in shown.splitlines() if "100.0%" in line]
    assert [row[0] for row in rows] == ["1", "0.7", "0.4"]
    assert all(float(row[1]) <= TOLERANCE for row in rows)


def test_whoever_serves_cuts_where_the_run_did(tiny_run, tmp_path):
    cli.export(flags(tiny_run, tmp_path / "out", "huggingface", default_budget=0.5))
    cli.export(flags(tmp_path / "out", tmp_path / "again"))  # of a folder that names no run
    assert read_config(tmp_path / "again").default_budget == 0.5
    cli.export(flags(tiny_run / "teacher", tmp_path / "dense"))
    for name, longest in (("out", 16), ("again", 16), ("dense", 32)):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert len(tokenizer("the cat sat " * 20, truncation=True)["input_ids"]) == longest


def test_an_onnx_graph_says_its_lengths(tiny_run, tmp_path):
    cli.export(flags(tiny_run, tmp_path / "out"))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert session.get_modelmeta().custom_metadata_map == {
        "max_seq_length": "16",
        "max_position_embeddings": "32",
    }


def test_tools_that_know_nothing_of_budgets_can_load_an_onnx_folder(tiny_run, tmp_path):
    cli.export(flags(tiny_run, tmp_path / "out", default_budget=0.5))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert {each.name for each in session.get_inputs()} == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
    }
    assert session.get_outputs()[0].name == "logits"
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["model_type"] == "bert"
    assert values["architectures"] == ["BertForSequenceClassification"]
    assert set(values["id2label"].values()) == {"positive", "negative"}
    assert values["dpbert"]["default_budget"] == 0.5


def test_a_default_budget_that_cannot_be_had_is_a_sentence(tiny_run, tmp_path):
    for budget, message in (
        (0.35, r"--default_budget is 0\.35: .* trained for budgets from 0\.4"),
        (0.0, r"--default_budget is 0\.0: .* must lie in \(0, 1\]"),
    ):
        with pytest.raises(UserError, match=message):
            cli.export(flags(tiny_run, tmp_path / "out", default_budget=budget))
    with pytest.raises(UserError, match="--default_budget is for models with a planner"):
        cli.export(flags(tiny_run / "teacher", tmp_path / "out", default_budget=0.5))
    config = read_config(tiny_run)
    for changes, form, message in (
        (
            {"planner": dataclasses.replace(config.planner, max_budget=0.6)},
            "onnx",
            r"--default_budget is 0\.75 unless given: .* from 0\.4 to 0\.6",
        ),
        ({"calibration": None}, "huggingface", "has no thresholds: .* --default_budget 1"),
    ):
        changed = dataclasses.replace(config, **changes)
        with pytest.raises(UserError, match=message):
            model = dataclasses.replace(Model.from_pretrained(tiny_run), config=changed)
            export_format(form).prepare(model, ExportOptions(), None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["onnx", "stablehlo"])
def test_a_dense_model_is_exported_and_said_to_be(form, tiny_run, tmp_path, caplog):
    with caplog.at_level("INFO", logger="dpbert_jax"):
        assert cli.export(flags(tiny_run / "teacher", tmp_path / "out", form))
    assert "no planner" in caplog.text
    assert FILES[form] <= {path.name for path in (tmp_path / "out").iterdir()}


def spoil(monkeypatch, change):
    """Makes the ONNX artifact answer what `change` turns its answers into."""
    chosen = onnx_format.FORMAT

    def load(folder, model, options):
        call = chosen.load(folder, model, options)
        return lambda batch, budget: change(*call(batch, budget))

    monkeypatch.setattr(onnx_format, "FORMAT", chosen._replace(load=load))


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, mask: (logits + 1e-3, mask),
        lambda logits, mask: (logits, np.roll(mask, 1, axis=1)),
        lambda logits, mask: (logits * np.nan, mask),
    ],
    ids=["logits", "plans", "nan"],
)
def test_a_mismatch_is_told_and_nothing_left(change, tiny_run, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, change)
    assert not cli.export(flags(tiny_run, tmp_path / "out", verify=True))
    assert list(tmp_path.iterdir()) == []
    captured = capsys.readouterr()
    assert "MISMATCH" in captured.out and "the artifact disagrees" in captured.err
    monkeypatch.setattr(
        "sys.argv",
        [
            "export",
            str(tiny_run),
            "--format",
            "onnx",
            "--output_dir",
            str(tmp_path / "out"),
            "--verify",
        ],
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1


def test_int8_is_judged_by_its_score(tiny_run, tmp_path, monkeypatch, capsys):
    assert cli.export(flags(tiny_run, tmp_path / "out", int8=True, verify=True))
    spoil(monkeypatch, lambda logits, mask: (-logits, mask))
    assert not cli.export(flags(tiny_run, tmp_path / "worse", int8=True, verify=True))
    assert "a score that is 0.02 lower" in capsys.readouterr().err


def test_int8_throughout_is_held_to_the_plans_and_lies_beside_its_graph(tiny_run, tmp_path):
    folder = tmp_path / "out"
    options = {"int8_all": True, "standard_operators": True, "verify": True}
    assert cli.export(flags(tiny_run, folder, **options))
    made = json.loads((folder / "export_config.json").read_text())
    assert made["int8"] and made["int8_all"] and made["standard_operators"]
    assert "model.onnx.data" in (folder / "SHA256SUMS").read_text()
    modes = {(folder / f"model.onnx{end}").stat().st_mode for end in ("", ".data")}
    assert len(modes) == 1
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=providers)
    names = [each.name for each in session.get_inputs()]
    assert names[-1] == "budget"  # it has no default: a call must name it


def test_an_interrupted_export_leaves_nothing(tiny_run, tmp_path, monkeypatch):
    def fail(folder, model, options):
        (folder / "half").write_text("")
        raise RuntimeError

    monkeypatch.setattr(onnx_format, "FORMAT", onnx_format.FORMAT._replace(write=fail))
    with pytest.raises(RuntimeError):
        cli.export(flags(tiny_run, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_wrong_calls_are_sentences(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("")
    (tmp_path / "a file").write_text("")
    for name in ("used", "a file"):
        with pytest.raises(UserError, match=r"in use: name a folder that is new or empty"):
            cli.export(flags(tiny_run, tmp_path / name))
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(UserError, match=r"out\.partial: File exists"):
        cli.export(flags(tiny_run, tmp_path / "out"))
    assert (tmp_path / "out.partial").exists()
    (tmp_path / "out.partial").rmdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        cli.export(flags(tmp_path / "used", tmp_path / "out"))
    with pytest.raises(UserError, match="must be one of"):
        flags(tiny_run, tmp_path / "out", "torchscript")
    with pytest.raises(UserError, match="--int8 is not for --format stablehlo"):
        flags(tiny_run, tmp_path / "out", "stablehlo", int8=True)
    with pytest.raises(UserError, match="--plan_rule is 'best'"):
        flags(tiny_run, tmp_path / "out", "huggingface", plan_rule="best")
    with pytest.raises(UserError, match="--int8 is for models with a planner"):
        cli.export(flags(tiny_run / "teacher", tmp_path / "out", int8=True))
    with pytest.raises(UserError, match="--int8 is for models with a planner"):
        cli.export(flags(tiny_run / "teacher", tmp_path / "out", int8_all=True))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs onnx, not installed: pip install 'dpbert-jax\[onnx"
    ):
        cli.export(flags(tiny_run, tmp_path / "out"))
    with pytest.raises(UserError, match=r"--verify of --format huggingface needs torch"):
        cli.export(flags(tiny_run, tmp_path / "out", "huggingface", verify=True))
    assert not (tmp_path / "out").exists()


def test_rows_on_the_edge_are_those_that_a_rounding_could_turn():
    config = DPBertConfig(TINY, PlannerConfig(min_layers=2))  # three gates, one at least
    logits = np.array(
        [[0.5, 1.0, -1.0], [0.50005, 1.0, -1.0], [0.2, 0.20005, -1.0], [-1.0, 0.2, 0.20005]]
    )

    def edges(rule):
        return on_edge(config, logits, rule).tolist()

    assert edges(Rule(0.6, 0.3, 3)) == [False, False, True, True]
    assert edges(Rule(0.6, 0.5, 3)) == [True, True, True, True]
    assert edges(Rule(0.6, -np.inf, 2)) == [False, False, True, True]
    without = dataclasses.replace(config, planner=PlannerConfig())
    assert on_edge(without, logits, Rule(0.6, 0.3, 3)).tolist() == [False] * 4
    assert on_edge(without, logits, Rule(0.6, -np.inf, 2)).tolist() == [False] * 4
