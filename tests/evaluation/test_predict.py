"""`dpbert predict`: texts of files, a pipe and flags, answered as the model in Python answers."""

import csv
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dpbert_jax import cli
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.predict import PredictArguments, predict
from dpbert_jax.evaluation.report import evaluate_run
from dpbert_jax.model import Model
from dpbert_jax.run_folder import TRAIN_CONFIG

TEXTS = ["the cat sat on the mat good", "a film, was bad", "it ran in the sun " * 5]


@pytest.fixture
def answered(tiny_run, capsys):
    """A function (flags) -> the answers on standard output."""

    def ask(**flags):
        predict(PredictArguments(str(tiny_run), **{"budget": [0.7], **flags}))
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return ask


@pytest.fixture(scope="module")
def wanted(tiny_run):
    """What the library says of the texts."""
    rows = []
    for index, each in enumerate(Model.from_pretrained(tiny_run).predict(TEXTS, budget=0.7)):
        values = each._asdict() | {"index": index, "layers": list(each.layers)}
        rows.append({name: value for name, value in values.items() if name != "score"})
    return rows


def table(path, texts=TEXTS, name="sentence"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([["id", name, "label"], *([i, text, "?"] for i, text in enumerate(texts))])
    return str(path)


def lines(path, texts=TEXTS):
    path.write_text("".join(f"{text}\n" for text in texts))
    return str(path)


@pytest.mark.parametrize("source", ["text", "rows.csv", "rows.tsv", "rows.jsonl", "rows.txt", "-"])
def test_answers_are_the_librarys_wherever_the_texts_come_from(
    source, answered, wanted, tmp_path, monkeypatch
):
    path = tmp_path / source
    if source == "text":
        rows = answered(text=TEXTS)
    elif source == "-":
        text = "\r\n".join(TEXTS)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        rows = answered(input_file="-")
    elif source == "rows.jsonl":
        path.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in TEXTS))
        rows = answered(input_file=str(path))
    else:
        rows = answered(input_file=(lines if source == "rows.txt" else table)(path))
    assert rows == wanted
    assert [row["truncated"] for row in rows] == [False, False, True]


def test_a_file_of_answers_is_written_whole(answered, wanted, tmp_path, tiny_run):
    source = lines(tmp_path / "rows.txt")
    assert answered(input_file=source, output_file=str(tmp_path / "deep" / "out.jsonl")) == []
    written = (tmp_path / "deep" / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == wanted
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.jsonl"]
    answered(input_file=source, output_file=str(tmp_path / "out.csv"))
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["truncated"] for row in rows] == ["False", "False", "True"]
    # A failure leaves what was there.
    (tmp_path / "bad.txt").write_text("good\n\nbad\n")
    with pytest.raises(UserError, match=r"bad\.txt line 2: the line is empty"):
        answered(input_file=str(tmp_path / "bad.txt"), output_file=str(tmp_path / "out.csv"))
    assert list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines())) == rows


def test_evaluation_answers_a_file_alike(answered, tiny_run, tmp_path):
    source, output = table(tmp_path / "rows.csv"), tmp_path / "answers.jsonl"
    flags = {"predict_file": source, "output_file": str(output), "budget": [0.7]}
    evaluate_run(EvalArguments(str(tiny_run), **flags))
    for one, other in zip(
        map(json.loads, output.read_text().splitlines()), answered(input_file=source), strict=True
    ):
        assert {**one, "truncated": other["truncated"]}.keys() == other.keys()
        for name in ("index", "label", "layers"):
            assert one[name] == other[name]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert one["cost"] == pytest.approx(other["cost"], abs=1e-6)


def test_columns_and_lengths_are_those_named(answered, wanted, tmp_path):
    source = table(tmp_path / "rows.csv", name="other")
    with pytest.raises(UserError, match=r"no column 'sentence', which the training data has"):
        answered(input_file=source)
    assert answered(input_file=source, text_column_name="other") == wanted
    assert not any(row["truncated"] for row in answered(text=TEXTS, max_length=32))
    depths = {len(row["layers"]) for row in answered(text=TEXTS, plan_rule="top_k")}
    assert depths == {2}


def test_a_model_of_pairs_takes_pairs_only(tiny_run, tmp_path, capsys):
    Model.from_pretrained(tiny_run).save_pretrained(tmp_path / "pairs")
    record = json.loads((tiny_run / TRAIN_CONFIG).read_text())
    record["resolved"]["columns"] = {"text": "one", "text_pair": "two", "label": "label"}
    (tmp_path / "pairs" / "SHA256SUMS").unlink()
    (tmp_path / "pairs" / TRAIN_CONFIG).write_text(json.dumps(record))

    def ask(**flags):
        predict(PredictArguments(str(tmp_path / "pairs"), **flags))
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    (tmp_path / "rows.csv").write_text("two,one\na dog,a cat\n")
    assert ask(text=["a cat"], text_pair=["a dog"]) == ask(input_file=str(tmp_path / "rows.csv"))
    for flags in ({"text": ["a cat"]}, {"input_file": lines(tmp_path / "rows.txt")}):
        with pytest.raises(UserError, match="trained on pairs of texts, columns 'one' and 'two'"):
            ask(**flags)
    with pytest.raises(UserError, match="trained on single texts"):
        predict(PredictArguments(str(tiny_run), text=["a cat"], text_pair=["a dog"]))


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "either with --input_file or with --text"),
        (["--text", "a", "--input_file", "-"], "either with --input_file or with --text"),
        (["--input_file", "-", "--text_pair", "a"], "--text_pair goes with --text"),
        (["--text", "a", "--budget", "1", "0.5"], "at one --budget, not at several"),
        (["--text", "a", "--text_column_name", "x"], "for files with columns"),
        (["--input_file", "a.txt", "--text_pair_column_name", "x"], "for files with columns"),
        (["--text", "a", "--output_file", "b.txt"], "must end in one of .csv, .tsv, .jsonl"),
        (["--text", "a", "--output_file", "{tmp}/a.csv"], "is a folder: name a file"),
        (["--text", "a", "--output_file", "{tmp}/file/b.csv"], "cannot be written"),
        (["--text", "a", "--budget", "0.1"], "The budget is 0.1"),
        (["--text", "a", "--max_length", "2"], "leaves no room"),
        (["--text", "a", "--plan_rule", "best"], "--plan_rule is 'best'"),
        (["--input_file", "{tmp}/none.txt"], "there is no such file"),
        (["--input_file", "{tmp}/none.md"], "must end in one of"),
        (["--input_file", "{tmp}/latin.txt"], "latin.txt line 1: byte 4 is not valid UTF-8"),
        (["--input_file", "{tmp}/file"], "must end in one of"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(flags, words, tiny_run, tmp_path, capsys):
    (tmp_path / "a.csv").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", str(tiny_run), *(flag.format(tmp=tmp_path) for flag in flags)])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("error: ") and words in err


MODEL = """
import json, sys
from dpbert_jax import Model

Model.from_pretrained(sys.argv[1]).predict(["a film"])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
COMMAND = """
import json, sys
from dpbert_jax.cli import main

main(["predict", sys.argv[1], "--input_file", sys.argv[2]])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
TRAINING = {
    "flax",
    "orbax",
    "optax",
    "datasets",
    "matplotlib",
    "sklearn",
    "tensorboardX",
    "tqdm",
    "pandas",
}


def test_nothing_that_only_training_needs_is_imported(tiny_run, tmp_path):
    imported = []
    for script in (MODEL, COMMAND):
        command = [sys.executable, "-c", script, str(tiny_run), lines(tmp_path / "rows.txt")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        imported.append(set(json.loads(done.stdout.splitlines()[-1])))
    model, command = imported
    assert not (command - model) & TRAINING
    assert not command & {"datasets", "matplotlib", "sklearn", "tensorboardX"}
