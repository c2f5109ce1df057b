from pathlib import Path

import numpy as np
import pytest

from dpbert_jax.data.glue_folder import load_glue_folder, task_of_folder
from dpbert_jax.data.tasks import GLUE_TASKS
from dpbert_jax.errors import UserError

MNLI_HEADER = "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n"


def write(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.tsv").write_bytes(data)
    return folder


def test_cola_has_a_header_in_its_test_file_only(tmp_path: Path):
    folder = write(
        tmp_path,
        train='gj04\t1\t\t"He said.\nbc01\t0\t*\tHim said.\n',
        dev="gj04\t1\t\tShe ran.",
        test="index\tsentence\n0\tBill whistled.\n",
    )
    splits = load_glue_folder(folder, "cola").splits
    assert splits["train"].text_a == ['"He said.', "Him said."]
    assert splits["train"].labels is not None
    assert splits["train"].labels.tolist() == [1, 0]
    assert splits["validation"].text_a == ["She ran."]
    assert splits["test"].text_a == ["Bill whistled."]
    assert splits["test"].labels is None


def test_mrpc_begins_with_a_byte_order_mark(tmp_path: Path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    folder = write(tmp_path, dev=header + '1\t7\t8\t" A cat .\tA dog " .\r\n')
    validation = load_glue_folder(folder, "mrpc").splits["validation"]
    assert (validation.text_a, validation.text_b) == (['" A cat .'], ['A dog " .'])


def test_mnli_has_two_validation_splits_named_labels_and_the_gold_label_last(tmp_path: Path):
    row = "0\t1\tA cat sat.\tIt sat.\tneutral\tcontradiction\n"
    folder = write(tmp_path, dev_matched=MNLI_HEADER + row, dev_mismatched=MNLI_HEADER + row)
    splits = load_glue_folder(folder, "mnli").splits
    assert list(splits) == ["validation_matched", "validation_mismatched"]
    labels = splits["validation_matched"].labels
    assert labels is not None and labels.tolist() == [2]


def test_sst2_loses_its_trailing_blanks_and_unicode_breaks_no_line(tmp_path: Path):
    folder = write(tmp_path, dev="sentence\tlabel\na\u2028b\x0cc \t1\n")
    assert load_glue_folder(folder, "sst2").splits["validation"].text_a == ["a\u2028b\x0cc"]


def test_stsb_has_scores(tmp_path: Path):
    folder = write(tmp_path, dev="index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n")
    labels = load_glue_folder(folder, "stsb").splits["validation"].labels
    assert labels is not None and labels.dtype == np.float32
    assert labels.tolist() == pytest.approx([3.8])


QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
RTE = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n"


@pytest.mark.parametrize(
    ("task", "dev", "message"),
    [
        ("qqp", QQP + "1\t2\t3\tWhat?\n", r"^dev\.tsv line 2: 4 columns instead of 6"),
        ("rte", RTE + "1\ta\tb\tentailed\n",
         r"^dev\.tsv line 3: label 'entailed' is not one of \['entailment', 'not_entailment'\]\.$"),
        ("rte", RTE + "1\ta\tb\tc\tentailment\n", r"^dev\.tsv line 3: 5 columns"),
        ("rte", RTE + "\n", r"^dev\.tsv line 3: 1 columns"),
        ("rte", RTE.encode() + b"1\ta\t\xe9\tentailment\n", r"^dev\.tsv line 3: .*UTF-8"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n", "the file has no rows"),
        ("rte", "", "the file is empty"),
        ("rte", "index\ttext\n0\ta\n", r"^dev\.tsv line 2: there is no column 'sentence1'"),
        ("sst2", "sentence\tlabel\na\t2\n", r"line 2: label '2' is not one of \['0', '1'\]"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\tnan\n", r"line 2: score 'nan' is not a"),
        ("cola", "gj04\t1\t\ta b\ngj04\t1\t\n", r"^dev\.tsv line 2: 3 columns instead of 4"),
    ],
)  # fmt: skip
def test_errors_name_file_and_line(tmp_path: Path, task: str, dev: str | bytes, message: str):
    with pytest.raises(UserError, match=message):
        load_glue_folder(write(tmp_path, dev=dev), task)


def test_validation_must_be_there(tmp_path: Path):
    write(tmp_path, train=RTE)
    with pytest.raises(UserError, match=r"there is no dev\.tsv, which rte needs"):
        load_glue_folder(tmp_path, "rte")


def test_folder_names():
    assert task_of_folder(Path("glue/STS-B")) == "stsb"
    assert task_of_folder(Path("glue/CoLA/")) == "cola"
    assert task_of_folder(Path("glue")) is None


@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("SST-2", 67_349, 872),
        ("MRPC", 3_668, 408),
        ("CoLA", 8_551, 1_043),
        ("RTE", 2_490, 277),
        ("STS-B", 5_749, 1_500),
        ("WNLI", 635, 71),
        ("QNLI", None, 5_463),
    ],
)
def test_the_published_files(glue_dir: Path, name: str, train: int | None, validation: int):
    folder = glue_dir / name
    task = task_of_folder(folder)
    assert task is not None
    data = load_glue_folder(folder, task)
    assert data.spec == GLUE_TASKS[task]
    assert len(data.splits["validation"]) == validation
    assert ("train" in data.splits) == (train is not None)
    if train is not None:
        assert len(data.splits["train"]) == train
    assert data.splits["test"].labels is None
    labels = data.splits["validation"].labels
    assert labels is not None
    if not data.spec.is_regression:
        assert set(labels.tolist()) == set(range(data.spec.num_labels))
