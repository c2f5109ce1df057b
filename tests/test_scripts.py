"""train.py and eval.py as a user meets them: exit codes, one sentence for a mistake, a kill."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpbert_jax.hub.folders import WEIGHTS

REPOSITORY = Path(__file__).resolve().parents[1]
OUTPUT = ["--output_dir", "{tmp}/run"]
TRAIN = ["--model_name_or_path", "{pretrained}", "--max_seq_length", "16", *OUTPUT]
FILES = ["--train_file", "{train}", "--validation_file", "{validation}"]
EVAL = ["--model_name_or_path", "{run}", "--executor", "masked"]


@pytest.fixture
def run_script(tiny_folder, sentence_files, tmp_path, monkeypatch, capsys):
    """A function (script, flags) -> (exit code, stdout, stderr), in this process."""
    places = {"tmp": tmp_path, "pretrained": tiny_folder}
    places |= {k.removesuffix("_file"): v for k, v in sentence_files["classes"].items()}

    def run(script, flags, **more):
        argv = [flag.format(**places, **more) for flag in flags]
        monkeypatch.setattr(sys, "argv", [script, *argv])
        code = 0
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def assert_one_sentence(result, *words):
    code, _, stderr = result
    assert code == 2
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and last.endswith((".", ")", '"'))
    assert "Traceback" not in stderr
    assert stderr.count("error:") == 1
    for word in words:
        assert word in last


@pytest.mark.parametrize(
    "script, flags",
    [
        ("train.py", ["--learning_rate", "--per_device_train_batch_size", "--min_budget"]),
        ("eval.py", ["--budget", "--plan_rule", "--executor", "--plot_dir"]),
    ],
)
def test_help_lists_the_flags(script, flags, run_script):
    code, stdout, stderr = run_script(script, ["--help"])
    assert (code, stderr) == (0, "")
    for flag in ["--model_name_or_path", "--task_name", *flags]:
        assert flag in stdout


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
@pytest.mark.parametrize("flag", ["--no_such_flag", "--max_seq"])
def test_an_unknown_or_shortened_flag_is_refused(script, flag, run_script):
    needed = {"train.py": ["--output_dir", "run"], "eval.py": ["--model_name_or_path", "run"]}
    code, _, stderr = run_script(script, [*needed[script], flag, "8"])
    assert code == 2
    assert f"unrecognized arguments: {flag}" in stderr


@pytest.mark.parametrize(
    "flags, words",
    [
        (TRAIN, ["No data", "--task_name"]),
        ([*TRAIN, "--task_name", "sst-3"], ["sst-3", "sst2"]),
        ([*TRAIN, "--train_file", "{tmp}/none.csv", *FILES[2:]], ["none.csv"]),
        ([*TRAIN, *FILES[:2], "--validation_file", "{tmp}/none.csv"], ["none.csv"]),
        ([*TRAIN, *FILES, "--task_name", "sst2"], ["two sources"]),
        ([*TRAIN, *FILES, "--min_budget", "1.5"], ["--min_budget", "1.5"]),
        ([*TRAIN, *FILES, "--min_budget", "0.2"], ["--min_budget", "1 layer(s)"]),
        ([*TRAIN, *FILES, "--stem_layers", "3"], ["stem_layers", "3"]),
        ([*TRAIN, *FILES, "--max_seq_length", "64"], ["--max_seq_length", "64", "32"]),
        ([*TRAIN, *FILES, "--report_to", "paper"], ["--report_to", "paper"]),
        ([*TRAIN, *FILES, "--teacher", "{pretrained}"], ["--teacher"]),
        ([*OUTPUT, "--model_name_or_path", "{tmp}/none", *FILES], ["none", "folder"]),
        ([*TRAIN, *FILES, "--resume"], ["--resume"]),
    ],
)
def test_train_refuses_in_one_sentence_and_writes_nothing(flags, words, run_script, tmp_path):
    assert_one_sentence(run_script("train.py", flags), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        ([*EVAL, "--budget", "0"], ["The budget is", "(0, 1]"]),
        ([*EVAL, "--budget", "1.5"], ["The budget is", "(0, 1]"]),
        ([*EVAL, "--budget", "1.0", "nan"], ["The budget is", "nan"]),
        ([*EVAL, "--budget", "0.35"], ["0.35", "0.4"]),
        ([*EVAL, "--budget", "0.1"], ["0.1", "1 layer(s)"]),
        ([*EVAL[:2], "--executor", "warp"], ["warp", "cond"]),
        ([*EVAL, "--plan_rule", "random"], ["random", "top_k"]),
        ([*EVAL, "--task_name", "sst-3"], ["sst-3"]),
        ([*EVAL, "--validation_file", "{tmp}/none.csv"], ["none.csv"]),
        (["--model_name_or_path", "{tmp}/none"], ["none"]),
        (["--model_name_or_path", "{tmp}"], ["config.json"]),
    ],
)
def test_eval_refuses_in_one_sentence(flags, words, run_script, tiny_run):
    assert_one_sentence(run_script("eval.py", flags, run=tiny_run), *words)


def test_eval_refuses_a_folder_with_a_changed_byte(run_script, tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert_one_sentence(run_script("eval.py", EVAL, run=folder), WEIGHTS, "SHA256SUMS")


def test_eval_prints_a_table(run_script, tiny_run):
    code, stdout, _ = run_script("eval.py", [*EVAL, "--budget", "1.0", "0.75"], run=tiny_run)
    assert code == 0
    assert "dense" in stdout and "0.75" in stdout


def as_flags(values):
    return [str(part) for name, value in values.items() for part in (f"--{name}", value)]


def messy(path, folder):
    """A copy of a csv file with a row of each fault at its end."""
    faults = [
        b"good \xff,positive",
        b",positive",
        b"bad,",
        b"bad",
        b"bad,negtive",
        b"a \0,negative",
    ]
    copy = folder / Path(path).name
    copy.write_bytes(Path(path).read_bytes() + b"\n".join(faults) + b"\n")
    return copy


def test_bad_rows_are_refused_or_skipped_and_listed(
    run_script, sentence_files, tiny_run, run_flags, tmp_path, caplog
):
    files = {name: messy(path, tmp_path) for name, path in sentence_files["classes"].items()}
    # A class name that was never meant would be one more class of the training file.
    files["train_file"].write_bytes(files["train_file"].read_bytes().replace(b"negtive", b""))
    flags = as_flags({**run_flags, **files, "output_dir": tmp_path / "run"})
    result = run_script("train.py", flags)
    assert_one_sentence(result, "classes_train.csv line 62: byte 6 is not valid UTF-8")
    assert not (tmp_path / "run").exists()

    code, _, stderr = run_script("train.py", [*flags, "--on_bad_row", "skip"])
    assert code == 0, stderr
    assert "train: 6 of 66 rows skipped.\n  classes_train.csv line 62: byte 6 is" in caplog.text
    listed = (tmp_path / "run" / "skipped_rows.txt").read_text().splitlines()
    places = [f"train: classes_train.csv line {number}: " for number in range(62, 68)]
    places += [f"validation: classes_validation.csv line {number}: " for number in range(22, 28)]
    assert len(listed) == len(places)
    for place in places:
        assert sum(line.startswith(place) for line in listed) == 1
    # The good rows are those of the clean files, so the run is that run.
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (tiny_run / WEIGHTS).read_bytes()

    # What the run skipped is skipped where the run's data is read again; other data is not.
    evaluation = ["--model_name_or_path", "{tmp}/run", "--executor", "masked"]
    code, _, stderr = run_script("eval.py", [*evaluation, "--json", "{tmp}/eval.json"])
    assert code == 0, stderr
    scored = json.loads((tmp_path / "eval.json").read_text())
    assert (scored["examples"], scored["skipped_rows"]) == (20, 6)
    other = ["--validation_file", str(files["validation_file"])]
    result = run_script("eval.py", [*evaluation, *other])
    assert_one_sentence(result, "classes_validation.csv line 22: byte 6 is not valid UTF-8")
    result = run_script("eval.py", [*evaluation, "--on_bad_row", "warn"])
    assert_one_sentence(result, "--on_bad_row is 'warn'")


def as_process(script, *flags, cwd):
    """Started from another folder, with this process's devices and compiled programs."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *map(str, flags)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    with as_process("eval.py", "--model_name_or_path", "none", cwd=tmp_path) as process:
        stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stdout) == (2, "")
    assert_one_sentence((2, stdout, stderr), "none")


def losses(folder):
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return [(line["step"], line["phase"], line["loss"]) for line in lines if "loss" in line]


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(tiny_run, run_flags, tmp_path):
    """SIGKILL leaves no time to tidy up; the straight run is this process's own."""
    folder = tmp_path / "run"
    flags = as_flags({**run_flags, "output_dir": folder})
    with as_process("train.py", *flags, cwd=tmp_path) as process:
        deadline = time.monotonic() + 300
        while len(losses(folder)) < 5 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / WEIGHTS).exists()
    with as_process("train.py", *flags, "--resume", cwd=tmp_path) as process:
        _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert (folder / WEIGHTS).read_bytes() == (tiny_run / WEIGHTS).read_bytes()
    assert losses(folder) == losses(tiny_run)
