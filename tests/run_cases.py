"""Small inputs that once went silently wrong, through train.py and eval.py as a user runs them.

    python tests/run_cases.py FOLDER [NAME ...]

FOLDER holds the files; a row is printed for each case: what was done, what was said. It takes
minutes: every case trains the packaged MiniLM. No test by itself: those of each kind stand beside
the modules that they are of.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN = (
    "--model_name_or_path minilm --max_seq_length 32 --per_device_train_batch_size 16 "
    "--learning_rate 1e-4 --num_train_epochs 4 --num_planner_epochs 1 --report_to none"
)


class Case(NamedTuple):
    """A command; `{run}` stands for the run of the case that it follows, `{files}` for FOLDER."""

    name: str
    script: str
    flags: str
    after: str | None = None


def own(kind: str, ending: str, more: str = "") -> str:
    names = (f"--{split}_file {{files}}/{kind}_{short}.{ending}" for split, short in SPLITS)
    return f"{TRAIN} {' '.join(names)} {more}"


SPLITS = (("train", "train"), ("validation", "dev"))
ANSWER = "--predict_file {files}/served_unlabelled.csv --output_file {run}/answers.csv"
CASES = (
    Case("plain", "train.py", own("plain", "csv")),
    Case("served_timestamp", "eval.py", "--validation_file {files}/served_timestamp.csv", "plain"),
    Case(
        "served_unlabelled, calibrate",
        "eval.py",
        "--validation_file {files}/served_unlabelled.csv --calibrate validation",
        "plain",
    ),
    Case("served_unlabelled, answers", "eval.py", f"{ANSWER} --budget 0.6", "plain"),
    Case("served_unlabelled, scored", "eval.py", "--validation_file {files}/served_unlabelled.csv",
         "plain"),
    Case("leak", "train.py", own("leak", "csv")),
    Case("extra", "train.py", own("extra", "csv")),
    Case("imbalanced", "train.py", own("imbalanced", "csv")),
    Case("imbalanced, rare", "eval.py", "--positive_class rare", "imbalanced"),
    Case("float_labels", "train.py", own("float_labels", "csv")),
    Case("float_labels, scores", "train.py",
         own("float_labels", "csv", "--problem_type regression")),
    Case("strscore", "train.py", own("strscore", "jsonl")),
    Case("strscore, classes", "train.py",
         own("strscore", "jsonl", "--problem_type single_label_classification")),
    Case("multilabel", "train.py", own("multilabel", "jsonl")),
    Case("multilabel, answers", "eval.py", f"{ANSWER} --budget 0.6", "multilabel"),
)  # fmt: skip
QUIET = ("Compil", "dense:", "joint:", "final:", "Planner refitted", "--executor auto", "Plots")


def run(case: Case, files: Path, runs: Path) -> tuple[int, str, list[str]]:
    """Exit code, what was done, what was said."""
    folder = runs / (case.after or case.name).replace(", ", "-").replace(" ", "_")
    place = {"files": files, "run": folder}
    flags = case.flags.format(**place).split()
    if case.script == "train.py":
        flags += ["--output_dir", str(folder)]
    else:
        flags = ["--model_name_or_path", str(folder), *flags]
        if "--predict_file" not in flags:
            flags += ["--json", str(runs / "eval.json")]
    (runs / "eval.json").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / case.script), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(runs / "programs")},
    )
    said = [
        line.replace(f"{files}/", "").replace(f"{runs}/", "")
        for line in done.stderr.splitlines()
        if line.strip() and not line.startswith(QUIET) and "it/s" not in line and "%|" not in line
    ]
    return done.returncode, figures(case, folder, runs), said


def figures(case: Case, folder: Path, runs: Path) -> str:
    """The scores of the full depth, or the first answer."""
    if "--predict_file" in case.flags and (folder / "answers.csv").is_file():
        return (folder / "answers.csv").read_text().splitlines()[1]
    if case.script == "train.py" and (folder / "metrics.jsonl").is_file():
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        scored = [line for line in lines if line.get("budget") == 1]
        return ", ".join(
            f"{name.removeprefix('eval_')} {value}"
            for name, value in (scored[0] if scored else {}).items()
            if name.startswith("eval_") and name.removeprefix("eval_") in METRICS
        )
    if (runs / "eval.json").is_file():
        found = json.loads((runs / "eval.json").read_text())
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found["metrics"].items())
        return f"{shown}; f1 of {found['f1_class']}"
    return "-"


METRICS = ("accuracy", "f1", "f1_macro", "f1_micro", "pearson", "spearmanr")


def main() -> None:
    files, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if wanted and case.name not in wanted and case.after is None:
                continue
            code, figures, said = run(case, files, Path(folder))
            print(f"| {case.name} | {code} | {figures} | {' / '.join(said[:6])} |", flush=True)


if __name__ == "__main__":
    main()
