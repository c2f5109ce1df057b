"""Whether an exported artifact says and does what this library does, on real sentences."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import INPUTS, TaskSpec, TokenizedSplit, batches
from dpbert_jax.evaluation.metrics import compute_metrics, score
from dpbert_jax.export.formats import Batch, Call, ExportOptions
from dpbert_jax.inference import Rule, make_executor, resolve_rule
from dpbert_jax.model import Model
from dpbert_jax.policies.rule import budget_range
from dpbert_jax.problem import REGRESSION, answers

TOLERANCE = 1e-4  # of logits, and around a threshold that a gate logit may fall on either side of
INT8_TOLERANCE = 0.02  # of the score
BATCH_SIZE = 32
TIMED_ROWS = 16
TIMED_PASSES = 5


class Comparison(NamedTuple):
    """An artifact beside this library, at one budget; every row alone and in a batch."""

    budget: float
    rows: int
    max_difference: float  # of logits, over rows with equal plans
    plans_equal: float  # share of rows; of a model that drops tokens, on as many of them
    near_ties: int  # rows with unequal plans and a gate logit on the very edge
    labels_by_batch: int  # rows that get another answer alone than in a batch
    plans_by_batch: int  # rows that run other layers alone than in a batch
    score: float | None  # of the artifact, in batches; None where the rows have no labels
    reference_score: float | None
    layers: float  # mean layers of the timed rows
    milliseconds: float  # of an input alone, median; rows in turns
    agrees: bool


def budgets_to_verify(config: DPBertConfig) -> list[float]:
    """All layers, and where there is a planner the ends' middle and the lowest budget."""
    budgets = budget_range(config)
    if budgets is None:
        return [1.0]
    low, high = budgets
    return sorted({low, round((low + high) / 2, 4), 1.0}, reverse=True)


def verify(
    call: Call,
    model: Model,
    options: ExportOptions,
    split: TokenizedSplit,
    spec: TaskSpec,
    max_seq_length: int,
) -> list[Comparison]:
    """Compares the artifact with the `masked` executor in float32, budget by budget."""
    config = model.config
    budgets = budgets_to_verify(config)
    timed = _timed_inputs(split, config, max_seq_length)
    times = _times(call, timed, budgets)
    return [
        _compare(call, model, options, budget, split, spec, max_seq_length, *times[budget])
        for budget in budgets
    ]


def _compare(
    call: Call,
    model: Model,
    options: ExportOptions,
    budget: float,
    split: TokenizedSplit,
    spec: TaskSpec,
    max_seq_length: int,
    layers: float,
    milliseconds: float,
) -> Comparison:
    config = model.config
    rule = resolve_rule(config, budget, options.plan_rule)
    execute = make_executor("masked", config, model.params, jnp.float32)

    def rows_of(call: Callable[[Batch], tuple], batch_size: int) -> list[np.ndarray]:
        return _rows(call, split, batch_size, max_seq_length, config.encoder.pad_token_id)

    def held(told: list[np.ndarray]) -> np.ndarray:
        """Layers, and tokens where they drop out; behind int8 products others may."""
        return np.concatenate(told[:1] if options.int8 else told, axis=1)

    wanted, plans, gate_logits, *tokens = rows_of(lambda batch: execute(batch, rule), BATCH_SIZE)
    ways = [rows_of(lambda batch: call(batch, budget), size) for size in (BATCH_SIZE, 1)]
    edge = on_edge(config, gate_logits, rule)
    if tokens and not options.int8:
        for stay in (rule.stay - TOLERANCE, rule.stay + TOLERANCE):
            moved = rule._replace(stay=stay)
            *_, left = rows_of(lambda batch, moved=moved: execute(batch, moved), BATCH_SIZE)
            edge |= (left != tokens[0]).any(axis=1)
    (logits, *ran), (alone, *ran_alone) = ways
    ran, ran_alone = held(ran), held(ran_alone)
    same = np.all([(each == held([plans, *tokens])).all(axis=1) for each in (ran, ran_alone)], 0)
    differences = [np.abs(each - wanted)[same].max(initial=0) for each in (logits, alone)]
    difference = float(np.max(differences))
    score, reference_score = (_score(each, split, spec) for each in (logits, wanted))
    if not options.int8:
        near = difference <= TOLERANCE
    else:
        near = score is None or reference_score is None or score >= reference_score - INT8_TOLERANCE
    finite = np.isfinite(logits).all() and np.isfinite(alone).all()
    return Comparison(
        budget=budget,
        rows=len(split),
        max_difference=difference,
        plans_equal=float(same.mean()),
        near_ties=int((edge & ~same).sum()),
        labels_by_batch=_unlike(logits, alone, spec),
        plans_by_batch=int((ran != ran_alone).any(axis=1).sum()),
        score=score,
        reference_score=reference_score,
        layers=layers,
        milliseconds=milliseconds,
        agrees=bool(near and finite and (same | edge).all()),
    )


def _rows(
    call: Callable[[Batch], tuple],
    split: TokenizedSplit,
    batch_size: int,
    max_seq_length: int,
    pad_token_id: int,
) -> list[np.ndarray]:
    """What the call gives for every row, one array [N, ...] for each part of its answer."""
    parts, order = [], []
    for batch in batches(split, batch_size, max_seq_length, pad_token_id=pad_token_id):
        real = batch["indices"] >= 0
        order.append(batch["indices"][real])
        parts.append(call(_inputs(batch, real)))
    back = np.argsort(np.concatenate(order))
    return [np.concatenate(part)[back] for part in zip(*parts, strict=True)]


def _unlike(logits: np.ndarray, others: np.ndarray, spec: TaskSpec) -> int:
    """Rows that the logits [N, C] answer unlike the others; scores, by more than `TOLERANCE`."""
    said, other = answers(logits, spec.problem_type), answers(others, spec.problem_type)
    differs = np.abs(said - other) > (TOLERANCE if spec.problem_type == REGRESSION else 0)
    return int(differs.reshape(len(said), -1).any(axis=1).sum())


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
    return {name: batch[name][rows] for name in INPUTS}


def _timed_inputs(
    split: TokenizedSplit, config: DPBertConfig, max_seq_length: int
) -> list[dict[str, np.ndarray]]:
    few = split.take(np.arange(min(TIMED_ROWS, len(split))))
    made = batches(few, 1, max_seq_length, pad_token_id=config.encoder.pad_token_id)
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
