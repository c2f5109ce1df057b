"""Whole runs on files as users have them, and with teachers whose classes have other names."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dpbert_jax.config_file import read_config, write_config
from dpbert_jax.data import Columns
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.report import evaluate_run
from dpbert_jax.evaluation.task import recorded_columns
from dpbert_jax.integrity import update_sums
from dpbert_jax.problem import MULTI_LABEL, SINGLE_LABEL
from dpbert_jax.study.fit import open_run

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"
WORDS = ("a good cat sat", "the dog ran on a bad mat")


@pytest.fixture(scope="module")
def short_flags(run_flags):
    """A run of a few steps, on files that each test names."""
    return {
        **run_flags,
        "num_train_epochs": 0.1,
        "num_planner_epochs": 0.1,
        "num_final_epochs": 0.0,
        "refit_planner": False,
        "report_to": ["none"],
        "save_steps": 100,
    }


def write(folder, name, lines):
    """Flags for a file that is trained on and scored."""
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return {"train_file": str(path), "validation_file": str(path)}


def evaluate(folder, **flags):
    return evaluate_run(EvalArguments(str(folder), executor="masked", **flags))


def last_line(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def test_an_index_is_no_text_and_whole_floats_are_classes(trained, short_flags, tmp_path):
    lines = [",text,label", *(f"{n},{WORDS[n % 2]},{n % 2}.0" for n in range(24))]
    flags = {**short_flags, **write(tmp_path, "a.csv", lines), "positive_class": "0"}
    folder = trained(tmp_path / "run", flags)
    bert = read_config(folder).encoder
    assert (bert.problem_type, bert.labels) == (SINGLE_LABEL, ("0", "1"))
    assert recorded_columns(folder) == Columns("text", None, "label")
    assert {"eval_accuracy", "eval_f1"} <= set(last_line(folder))
    assert open_run(str(folder)).task.spec.positive == 0

    record = json.loads((folder / "train_config.json").read_text())
    record["resolved"]["columns"]["text"] = "sentence"
    (folder / "train_config.json").write_text(json.dumps(record))
    update_sums(folder, ["train_config.json"])
    for go_on in (
        lambda: open_run(str(folder)),
        lambda: trained(folder, {**flags, "resume": "always"}),
    ):
        with pytest.raises(UserError, match="no column 'sentence', which the training data has"):
            go_on()


def test_any_number_of_classes_a_row(trained, short_flags, tmp_path):
    labels = (["toxic", "insult"], [], ["threat"])
    lines = [json.dumps({"text": WORDS[n % 2], "label": labels[n % 3]}) for n in range(24)]
    folder = trained(tmp_path / "run", {**short_flags, **write(tmp_path, "a.jsonl", lines)})
    bert = read_config(folder).encoder
    assert (bert.problem_type, bert.labels) == (MULTI_LABEL, ("insult", "threat", "toxic"))
    assert {"eval_f1_micro", "eval_f1_macro"} <= set(last_line(folder))
    kept = open_run(str(folder)).rows.kept.labels
    assert kept is not None and (kept.dtype, kept.shape[1]) == (np.float32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multilabel", "float_labels", "strscore", "leak", "extra"])
def test_files_as_users_have_them(trained, name, short_flags, tmp_path):
    paths = sorted(CASES.glob(f"{name}_[td]*"), reverse=True)
    if not paths:
        pytest.skip(f"no such files in {CASES}")
    files = dict(zip(("train_file", "validation_file"), map(str, paths), strict=True))
    changes = {"refit_planner": True, "num_final_epochs": 0.2}
    folder = trained(tmp_path / "run", {**short_flags, **files, **changes})
    for executor in ("masked", "packed"):
        (result,) = evaluate_run(EvalArguments(str(folder), executor=executor))
        assert result["examples"] > 30


def renamed(folder, names, copy):
    """A copy of a dense model whose classes have other names, or none."""
    shutil.copytree(folder, copy)
    bert = dataclasses.replace(read_config(copy).encoder, labels=names)
    write_config(dataclasses.replace(read_config(copy), encoder=bert), copy)
    update_sums(copy, ["config.json"])
    return copy


def test_a_models_own_order_of_classes(tiny_run, sentence_files, tmp_path):
    data = {"validation_file": sentence_files["classes"]["validation_file"], "max_seq_length": 16}
    (own,) = evaluate(tiny_run / "teacher", **data)
    flipped = renamed(tiny_run / "teacher", ("POSITIVE", "negative"), tmp_path / "flipped")
    (result,) = evaluate(flipped, **data)
    assert result["metrics"]["accuracy"] == pytest.approx(1 - own["metrics"]["accuracy"])
    nameless = renamed(tiny_run / "teacher", None, tmp_path / "nameless")
    (result,) = evaluate(nameless, **data, label_mapping=["negative=0", "positive=1"])
    assert result["metrics"] == own["metrics"]


def test_a_teacher_of_other_class_names_is_refused(trained, tiny_run, short_flags, tmp_path):
    teacher = renamed(tiny_run / "teacher", ("POS", "NEG"), tmp_path / "teacher")
    flags = {**short_flags, "model_name_or_path": None, "teacher": str(teacher)}
    with pytest.raises(UserError, match=r"the model \['POS', 'NEG'\]: say which is which"):
        trained(tmp_path / "run", flags)
    with pytest.raises(UserError, match="--label_mapping is of the classes of a --teacher"):
        trained(tmp_path / "run", {**short_flags, "label_mapping": ["negative=NEG"]})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "mapping", "labels"),
    [
        (("POSITIVE", "Negative"), None, ("POSITIVE", "Negative")),
        (("POS", "Negative"), ["positive=POS"], ("POS", "Negative")),
        (None, ["negative=LABEL_1", "positive=LABEL_0"], ("positive", "negative")),
    ],
)
def test_a_teacher_is_matched_by_name_or_mapping(
    trained, names, mapping, labels, tiny_run, short_flags, tmp_path
):
    teacher = renamed(tiny_run / "teacher", names, tmp_path / "teacher")
    flags = {**short_flags, "model_name_or_path": None, "teacher": str(teacher)}
    folder = trained(tmp_path / "run", {**flags, "label_mapping": mapping})
    assert read_config(folder).encoder.labels == labels
    assert evaluate(folder)[0]["examples"] == 20  # its own data, by the mapping that it was read by
    assert open_run(str(folder)).task.spec.labels == labels
