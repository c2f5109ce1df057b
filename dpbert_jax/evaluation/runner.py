"""A model run over splits as the flags of `eval.py` have it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.evaluation.evaluate import Predictions, predict
from dpbert_jax.inference import AUTO, Executor, Rule, pick_executor
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.model import Model

BATCH_SIZES = {"cond": 1, "masked": 32, "chunked": 32, "packed": CHUNK_ROWS}


class Runner(NamedTuple):
    """A function from a rule and a split to its predictions."""

    executor: str
    batch_size: int
    max_seq_length: int
    execute: Executor
    length_buckets: Sequence[int] | None = None  # default: those of `predict`

    def __call__(self, rule: Rule, split: TokenizedSplit, progress: str) -> Predictions:
        return predict(
            self.execute,
            rule,
            self.execute.config,
            split,
            batch_size=self.batch_size,
            max_seq_length=self.max_seq_length,
            length_buckets=self.length_buckets,
            progress=progress,
        )


def make_runner(
    args: EvalArguments, model: Model, length_buckets: Sequence[int] | None = None
) -> Runner:
    """Executor, batch size and length of the flags."""
    name, rows = args.executor, args.per_device_eval_batch_size
    name = pick_executor(rows) if name == AUTO else name
    execute = model.executor(name, chunk_size=args.chunk_size)
    length = args.max_seq_length or model.max_seq_length
    return Runner(name, rows or BATCH_SIZES[name], length, execute, length_buckets)


def compute_dtype(bf16: bool) -> Any:
    """What a model computes in, as the flag --bf16 has it."""
    return jnp.bfloat16 if bf16 else jnp.float32
