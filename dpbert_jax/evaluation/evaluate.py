"""Exact evaluation over a split: every example once, with the plans that it was given."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dpbert_jax import hosts
from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TaskSpec, TokenizedSplit, batches, chunks, default_buckets
from dpbert_jax.evaluation.metrics import compute_metrics, score, share_kept
from dpbert_jax.inference import Executor, Rule


@dataclass(frozen=True)
class Predictions:
    """What a model said of a split's N rows, in the split's order."""

    logits: np.ndarray  # [N, C]
    layer_mask: np.ndarray  # [N, L]
    cost: np.ndarray  # [N], share of the dense FLOPs, planner included
    seconds: float  # that the executor took, and nothing else; of a warm one, where it was warmed


def predict(
    execute: Executor,
    rule: Rule,
    config: DPBertConfig,
    split: TokenizedSplit,
    *,
    batch_size: int,
    max_seq_length: int,
    length_buckets: Sequence[int] | None = None,
    layer_mask: np.ndarray | None = None,
    warm_up: bool = True,
    progress: str | None = None,
) -> Predictions:
    """Runs an executor over a split: in length-bucketed batches, and `packed` in whole chunks.

    With several processes each runs its part of the rows, and all get the whole.

    Since every plan of a chunk is known before its layers run, `packed` runs each layer on full
    tiles of the rows that need it, whatever their lengths; memory is bounded by the chunk.

    Args:
        batch_size: rows of a batch, at most those of a chunk.
        length_buckets: lengths to pad to. Default: by device, and by the rows' lengths.
        layer_mask: plans [N, L] to run in place of the planner's.
        warm_up: whether to run a batch of every shape first, so that `seconds` has no compilation.
        progress: what to call this on the progress bar; None shows none.
    """
    if length_buckets is None:  # before the rows are dealt out: the same on every host
        platform = jax.default_backend()
        length_buckets = default_buckets(platform, split.lengths, max_seq_length)
    count, own = len(split), hosts.own_rows(len(split))
    if len(own) < count:
        split = split.take(own)
        layer_mask = None if layer_mask is None else layer_mask[own]

    def make_batches() -> Any:
        sized: Any = (split, batch_size, max_seq_length)
        pad = config.encoder.pad_token_id
        if execute.packs:
            return chunks(*sized, pad_token_id=pad)
        return batches(*sized, pad_token_id=pad, length_buckets=length_buckets)

    warm = set()
    for batch in make_batches() if warm_up else ():
        if batch["input_ids"].shape not in warm:
            warm.add(batch["input_ids"].shape)
            jax.block_until_ready(execute(batch, rule.of_rows(batch["indices"])))

    layers = config.encoder.num_hidden_layers
    logits = np.zeros((len(split), config.encoder.num_labels), np.float32)
    plans = np.zeros((len(split), layers), np.int8)
    cost = np.zeros(len(split), np.float32)
    bar = tqdm(desc=progress, total=len(split), leave=False, disable=progress is None)
    seconds = 0.0
    for batch in make_batches():
        # A padding row, of index -1, gets the last row's plan: whatever it computes is dropped.
        forced = None if layer_mask is None else layer_mask[batch["indices"]]
        began = time.perf_counter()
        output = jax.block_until_ready(execute(batch, rule.of_rows(batch["indices"]), forced))
        seconds += time.perf_counter() - began
        real = batch["weights"] > 0
        rows = batch["indices"][real]
        logits[rows] = np.asarray(output.logits)[real]
        plans[rows] = np.asarray(output.layer_mask)[real]
        # At the row's own length, so that it does not depend on the rows beside it.
        cost[rows] = execute.cost(output, real, split.lengths[rows])
        bar.update(len(rows))
    bar.close()
    logits, plans, cost = (hosts.all_rows(values, count) for values in (logits, plans, cost))
    return Predictions(logits, plans, cost, seconds)


def evaluation_figures(
    predictions: Predictions,
    mean_cost: float,
    spec: TaskSpec,
    labels: np.ndarray,
    dense_metrics: dict[str, float],
) -> dict[str, Any]:
    """The figures of one evaluation, ready for JSON; undefined ones are NaN.

    `score_kept` is the share of the dense model's score, where a score is the mean of the task's
    metrics; `f1_class` is the class that `f1` is of.
    """
    metrics = compute_metrics(spec, predictions.logits, labels)
    return {
        "metrics": metrics,
        "dense_metrics": dense_metrics,
        "f1_class": spec.f1_class,
        "score": score(metrics),
        "score_kept": share_kept(score(metrics), score(dense_metrics)),
        "mean_layers": float(predictions.layer_mask.sum(axis=1).mean()),
        "num_layers": predictions.layer_mask.shape[1],
        "cost": mean_cost,
        "distinct_plans": len(np.unique(predictions.layer_mask, axis=0)),
        "layer_frequency": predictions.layer_mask.mean(axis=0).round(6).tolist(),
        "seconds": predictions.seconds,
    }
