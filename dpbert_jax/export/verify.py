"""Whether an exported artifact says and does what this library does, on real sentences."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TaskSpec, TokenizedSplit, batches
from dpbert_jax.evaluation.metrics import compute_metrics, score
from dpbert_jax.export.formats import Call, Model
from dpbert_jax.inference import Rule, make_executor, resolve_rule

TOLERANCE = 1e-4  # of logits, and around a threshold that a gate logit may fall on either side of
INT8_TOLERANCE = 0.02  # of the score
BATCH_SIZE = 8
TIMED_ROWS = 16
TIMED_PASSES = 5


class Comparison(NamedTuple):
    """An artifact beside this library, at one budget."""

    budget: float
    rows: int
    max_difference: float  # of logits, over rows with equal plans
    plans_equal: float  # share of rows
    near_ties: int  # rows with unequal plans and a gate logit on the very edge
    score: float | None  # of the artifact; None where the rows have no labels
    reference_score: float | None
    layers: float  # mean layers of the timed rows
    milliseconds: float  # of an input alone, median; rows in turns
    agrees: bool


def budgets_to_verify(config: DPBertConfig) -> list[float]:
    """All layers, and where there is a planner the ends' middle and the lowest budget."""
    if config.planner is None:
        return [1.0]
    low, high = config.planner.min_budget, config.planner.max_budget
    return sorted({low, round((low + high) / 2, 4), 1.0}, reverse=True)


def verify(
    call: Call, model: Model, split: TokenizedSplit, spec: TaskSpec, max_seq_length: int
) -> list[Comparison]:
    """Compares the artifact with the `masked` executor in float32, budget by budget."""
    config = model.config
    budgets = budgets_to_verify(config)
    timed = _timed_inputs(split, config, max_seq_length)
    times = _times(call, timed, budgets)
    return [
        _compare(call, model, budget, split, spec, max_seq_length, *times[budget])
        for budget in budgets
    ]


def _compare(
    call: Call,
    model: Model,
    budget: float,
    split: TokenizedSplit,
    spec: TaskSpec,
    max_seq_length: int,
    layers: float,
    milliseconds: float,
) -> Comparison:
    config = model.config
    rule = resolve_rule(config, budget, model.plan_rule)
    execute = make_executor("masked", config, model.params, jnp.float32)
    logits = np.zeros((2, len(split), config.bert.num_labels), np.float32)
    same, edge = np.zeros(len(split), bool), np.zeros(len(split), bool)
    for batch in batches(split, BATCH_SIZE, max_seq_length, pad_token_id=config.bert.pad_token_id):
        made = execute(batch, rule)
        real = batch["indices"] >= 0
        rows = batch["indices"][real]
        logits[0, rows], plans = call(_inputs(batch, real), budget)
        logits[1, rows] = np.asarray(made.logits)[real]
        same[rows] = (plans == np.asarray(made.layer_mask)[real]).all(axis=1)
        edge[rows] = on_edge(config, np.asarray(made.gate_logits)[real], rule)
    difference = float(np.abs(logits[0] - logits[1])[same].max(initial=0))
    found, wanted = (_score(each, split, spec) for each in logits)
    if model.int8:
        agrees = found is None or wanted is None or found >= wanted - INT8_TOLERANCE
    else:
        agrees = difference <= TOLERANCE and bool((same | edge).all())
    return Comparison(
        budget=budget,
        rows=len(split),
        max_difference=difference,
        plans_equal=float(same.mean()),
        near_ties=int((edge & ~same).sum()),
        score=found,
        reference_score=wanted,
        layers=layers,
        milliseconds=milliseconds,
        agrees=bool(agrees and np.isfinite(logits[0]).all()),
    )


def _score(logits: np.ndarray, split: TokenizedSplit, spec: TaskSpec) -> float | None:
    if split.labels is None:
        return None
    return score(compute_metrics(spec, logits, split.labels))


def on_edge(config: DPBertConfig, gate_logits: np.ndarray, rule: Rule) -> np.ndarray:
    """Rows [N] whose plan a difference of `TOLERANCE` in a gate logit could change."""
    at_threshold = (np.abs(gate_logits - rule.threshold) < TOLERANCE).any(axis=1)
    falling = -np.sort(-gate_logits, axis=1)
    edges = [n for n in (rule.top_k, config.min_gates) if 0 < n < config.num_gates]
    gaps = [falling[:, n - 1] - falling[:, n] < TOLERANCE for n in edges]
    return np.any([at_threshold, *gaps], axis=0)


def _inputs(batch: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: batch[name][rows] for name in names}


def _timed_inputs(
    split: TokenizedSplit, config: DPBertConfig, max_seq_length: int
) -> list[dict[str, np.ndarray]]:
    few = split.take(np.arange(min(TIMED_ROWS, len(split))))
    made = batches(few, 1, max_seq_length, pad_token_id=config.bert.pad_token_id)
    return [_inputs(batch, batch["indices"] >= 0) for batch in made]


def _times(
    call: Call, inputs: list[dict[str, np.ndarray]], budgets: list[float]
) -> dict[float, tuple[float, float]]:
    """Mean layers and median milliseconds of each budget; budgets in turns, after a warm-up."""
    layers = {}
    seconds: dict[float, list[float]] = {budget: [] for budget in budgets}
    for budget in budgets:
        layers[budget] = float(np.mean([call(one, budget)[1].sum() for one in inputs]))
    for _ in range(TIMED_PASSES):
        for budget in budgets:
            began = time.perf_counter()
            for one in inputs:
                call(one, budget)
            seconds[budget].append((time.perf_counter() - began) / len(inputs))
    return {b: (layers[b], 1000 * float(np.median(seconds[b]))) for b in budgets}
