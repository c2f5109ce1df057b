"""The command `dpbert`: its verbs are there, and what it cannot do is one sentence."""

import importlib
import subprocess
import sys

import pytest

import dpbert_jax
from dpbert_jax import cli


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_has_a_main_and_a_line_of_help(name, monkeypatch, capsys):
    assert callable(importlib.import_module(f"dpbert_jax.{cli.VERBS[name].module}").main)
    assert name in cli.usage()
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: dpbert {name}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_without_a_verb_it_tells_them(argv, capsys):
    cli.main(argv)
    assert capsys.readouterr().out.startswith("usage: dpbert VERB")


def test_the_version_is_the_packages(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"dpbert-jax {dpbert_jax.__version__}\n"


def test_an_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["predcit"])
    assert stop.value.code == 2
    assert "'predcit' is not one of train, eval" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    monkeypatch.delitem(sys.modules, "dpbert_jax.evaluation.metrics", raising=False)
    monkeypatch.delitem(sys.modules, "dpbert_jax.evaluation.evaluate", raising=False)
    monkeypatch.delitem(sys.modules, "dpbert_jax.evaluation.report", raising=False)
    monkeypatch.delitem(sys.modules, "dpbert_jax.evaluation.command", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval"])
    assert stop.value.code == 2
    assert "needs sklearn" in capsys.readouterr().err


ASK = """
import sys
from dpbert_jax import Model

model = Model.from_pretrained(sys.argv[1])
print(len(model.predict(["a film"], budget=0.7)))
print(sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2].split(","))))
"""
TRAINING = "datasets,matplotlib,pandas,pyarrow,sklearn,tensorboardX"


def test_asking_a_model_imports_nothing_of_training(tiny_run):
    command = [sys.executable, "-c", ASK, str(tiny_run), TRAINING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", "[]"]
