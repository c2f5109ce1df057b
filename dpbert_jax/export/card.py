"""What a model card says beyond the model: its task, and the scores that its run's files hold."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpbert_jax.config import DPBertConfig
from dpbert_jax.errors import UserError
from dpbert_jax.integrity import update_sums, write_whole
from dpbert_jax.model import Model
from dpbert_jax.run_folder import (
    COLUMNS,
    HELD_OUT,
    METRICS,
    TRAIN_CONFIG,
    read_resolved,
    read_train_config,
)

CARD = "README.md"
NO_METRICS = ("eval_score", "eval_score_kept", "eval_distinct_plans")  # but made of them
PLAIN = """---
library_name: transformers
pipeline_tag: text-classification
---

# A BERT classifier

All layers run for every input. Trained with dpbert_jax.
"""


class Measured(NamedTuple):
    """One evaluation of a run."""

    source: str  # the file in the run's folder that says so
    task: str
    split: str
    examples: int | None  # None: not recorded
    plan_rule: str
    budget: float
    metrics: dict[str, float | None]
    cost: float
    mean_layers: float


def complete_card(folder: Path, model: Model) -> None:
    """Adds the task and the measured scores to the card of an export; a dense model's is new."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.exists() else PLAIN
    if model.folder is not None:
        text += _task(model.folder) + _scores(measured(model.folder, model.config))
    write_whole(path, text)
    update_sums(folder, [CARD])


def measured(folder: Path, config: DPBertConfig) -> list[Measured]:
    """The evaluations that the files of a run's folder hold, of the model as it is now.

    These are what training logged at its end (`metrics.jsonl`), and what `dpbert eval --json` wrote
    to this folder, which stands in place of the former where both measured the same. What was
    measured with other thresholds than the model has by now is left out.
    """
    now = config.calibration.inputs if config.calibration else None
    found = {}
    for thresholds, row in (*_of_training(folder), *_of_evaluation(folder)):
        fitting = row.budget == 1 or row.plan_rule != "threshold" or thresholds == (now or HELD_OUT)
        if fitting:
            found[row.task, row.split, row.plan_rule, row.budget] = row
    return sorted(found.values(), key=lambda row: (row.task, row.split, row.plan_rule, -row.budget))


def _of_training(folder: Path) -> Iterator[tuple[str, Measured]]:
    path = folder / METRICS
    if not path.is_file() or not (folder / TRAIN_CONFIG).is_file():
        return
    task = _task_name(read_train_config(folder))
    for line in path.read_text(encoding="utf-8").splitlines():
        values = _parsed(line)
        phase = str(values.get("phase", "")) if isinstance(values, dict) else ""
        if phase.startswith("eval/"):
            row = Measured(
                METRICS,
                task,
                split=phase.split("/")[1],
                examples=None,
                plan_rule="threshold",
                budget=values.pop("budget"),
                cost=values.pop("eval_cost"),
                mean_layers=values.pop("eval_mean_layers"),
                metrics={
                    key.removeprefix("eval_"): value
                    for key, value in values.items()
                    if key.startswith("eval_") and key not in NO_METRICS
                },
            )
            yield HELD_OUT, row


def _of_evaluation(folder: Path) -> Iterator[tuple[str, Measured]]:
    for path in sorted(folder.glob("*.json")):
        results = _parsed(path.read_text(encoding="utf-8"))
        for result in results if isinstance(results, list) else [results]:
            # `thresholds_from` is what only an evaluation of this version has.
            if isinstance(result, dict) and {"thresholds_from", "split"} <= set(result):
                fields = [result[name] for name in Measured._fields[1:]]
                yield result["thresholds_from"] or HELD_OUT, Measured(path.name, *fields)


def _parsed(text: str) -> Any:
    """What a JSON text says; None where it is none, as a last line that was cut short."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _task_name(record: dict[str, Any]) -> str:
    if record["task_name"] or not record["data_dir"]:
        return record["task_name"] or "custom"
    return Path(record["data_dir"]).name


def _task(folder: Path) -> str:
    try:
        record, columns = read_train_config(folder), read_resolved(folder).get(COLUMNS) or {}
    except UserError:  # a model from elsewhere
        return ""
    texts = [columns[name] for name in ("text", "text_pair") if columns.get(name)]
    read = f", texts in the column{'s' * (len(texts) > 1)} {' and '.join(texts)}" if texts else ""
    longest = f", cut to {record['max_seq_length']} tokens"
    return f"\n## Task\n\nFine-tuned on {_task_name(record)}{read}{longest}.\n"


def _scores(rows: list[Measured]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    head = ["task", "split", "rows", "plan rule", "budget", *names, "cost", "layers", "from"]
    table = [
        [
            row.task,
            row.split,
            str(row.examples or "-"),
            row.plan_rule,
            f"{row.budget:g}",
            *(_number(row.metrics.get(name)) for name in names),
            f"{row.cost:.3f}",
            f"{row.mean_layers:.2f}",
            f"`{row.source}`",
        ]
        for row in rows
    ]
    lines = [head, ["---"] * len(head), *table]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        "\n## Measured\n\nOn the split named, with layers really skipped; `cost` is the share of "
        f"the dense FLOPs that its inputs took, planner included.\n\n{text}\n"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
