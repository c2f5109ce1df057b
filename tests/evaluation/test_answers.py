"""Answers to a file's rows: those of the evaluation, whatever labels the file has or lacks."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from dpbert_jax.config import TINY
from dpbert_jax.config_file import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.answers import answer_rows
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.evaluate import Predictions
from dpbert_jax.evaluation.report import evaluate_run

ROWS = ["the cat sat on the mat good", "a film was bad", "it ran in the sun"]


FILE = "\n".join(["sentence", *ROWS])


def predict(folder, tmp_path, name, budget=0.7, rows=FILE, **flags):
    source, output = tmp_path / "rows.csv", tmp_path / "answers" / name
    source.write_text(rows + "\n")
    evaluate_run(
        EvalArguments(
            str(folder),
            budget=[budget],
            predict_file=str(source),
            output_file=str(output),
            **flags,
        )
    )
    return output.read_text().splitlines()


def test_a_line_for_each_row_in_their_order(tiny_run, tmp_path):
    lines = [json.loads(line) for line in predict(tiny_run, tmp_path, "answers.jsonl")]
    assert [line["index"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert set(line) == {"index", "label", "probabilities", "layers", "cost"}
        shares = line["probabilities"]
        assert sum(shares.values()) == pytest.approx(1)
        assert line["label"] == max(shares, key=shares.get)
        assert line["layers"][0] == 0 and 1 / 3 <= line["cost"] < 1.1
    alone = predict(tiny_run, tmp_path, "one.jsonl", rows="sentence\n" + ROWS[1])
    answer = json.loads(alone[0])
    assert (answer["label"], answer["layers"]) == (lines[1]["label"], lines[1]["layers"])


@pytest.mark.parametrize("suffix, delimiter", [("csv", ","), ("tsv", "\t")])
def test_a_table_has_a_column_for_each_probability(suffix, delimiter, tiny_run, tmp_path):
    text = predict(tiny_run, tmp_path, f"answers.{suffix}", budget=1.0)
    rows = list(csv.DictReader(text, delimiter=delimiter))
    assert list(rows[0]) == [
        "index",
        "label",
        "probability_negative",
        "probability_positive",
        "layers",
        "cost",
    ]
    assert {row["layers"] for row in rows} == {"0 1 2"} and len(rows) == len(ROWS)


def test_labels_in_the_file_are_not_looked_at(tiny_run, tmp_path):
    plain = predict(tiny_run, tmp_path, "plain.jsonl")
    labelled = "sentence,label\n" + "\n".join(f"{row},no such class" for row in ROWS)
    assert predict(tiny_run, tmp_path, "labelled.jsonl", rows=labelled) == plain


def test_nothing_is_scored_unless_that_was_asked(tiny_run, tmp_path, capsys):
    predict(tiny_run, tmp_path, "answers.csv")
    assert capsys.readouterr().out == ""
    predict(tiny_run, tmp_path, "answers.csv", do_eval=True)
    assert "accuracy" in capsys.readouterr().out


def test_a_row_that_cannot_be_read_is_refused_and_never_left_out(tiny_run, tmp_path):
    rows = "sentence\n" + ROWS[0] + "\n\n" + ROWS[1]
    with pytest.raises(UserError, match=r"rows\.csv line 3: .*empty"):
        predict(tiny_run, tmp_path, "answers.csv", rows=rows)
    with pytest.raises(UserError, match="gets its answer, or none"):
        predict(tiny_run, tmp_path, "answers.csv", rows=rows, on_bad_row="skip")


def test_thresholds_are_found_on_rows_without_labels(tiny_run, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    served = tmp_path / "served.csv"
    served.write_text("sentence\n" + "\n".join(ROWS * 3) + "\n")
    flags = {"validation_file": str(served), "budget": [0.7]}
    caplog.set_level("INFO")
    assert evaluate_run(EvalArguments(str(folder), calibrate="validation", **flags)) == []
    assert "no labels: nothing is scored" in caplog.text
    calibration = read_config(folder).calibration
    assert calibration is not None and calibration.inputs == "custom validation"
    with pytest.raises(UserError, match=r"no labels to score against.*--predict_file"):
        evaluate_run(EvalArguments(str(folder), **flags))


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"predict_file": "a.csv"}, "--predict_file and --output_file belong together"),
        ({"output_file": "a.csv"}, "--predict_file and --output_file belong together"),
        ({"predict_file": "a.csv", "output_file": "b.txt"}, r"must end in one of \.csv"),
        (
            {"predict_file": "a.csv", "output_file": "b.csv", "budget": [0.5, 1.0]},
            "at one --budget",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        EvalArguments("run", **flags)


def test_several_labels_are_a_list_and_scores_have_no_probability():
    logits = np.array([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]], np.float32)
    predictions = Predictions(logits, np.ones((2, 4), np.int8), np.ones(2, np.float32), 0.0)
    config = dataclasses.replace(
        TINY,
        num_labels=3,
        labels=("loud", "rude", "late"),
        problem_type="multi_label_classification",
    )
    both, none = answer_rows(config, predictions)
    assert (both["label"], none["label"]) == (["loud", "late"], [])
    assert both["probabilities"]["rude"] == pytest.approx(1 / (1 + np.e))
    config = dataclasses.replace(TINY, num_labels=1, problem_type="regression")
    scores = dataclasses.replace(predictions, logits=logits[:, :1])
    row, _ = answer_rows(config, scores)
    assert row["score"] == 3 and not {"probabilities", "label"} & set(row)
