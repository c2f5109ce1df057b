"""How a run asks models for answers: as its kind of device likes it.

On a CPU each question has the form that is fastest for it. On an accelerator every form and every
length is a compilation longer than most answers, so there one program answers all: the model with
its planner, `chunked`, in batches of one size and the run's lengths. The dense model is asked as
one whose planner is overruled, thresholds are found on what the same program says of the gates.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TokenizedSplit
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.inference import Rule, resolve_rule
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.model import Model
from dpbert_jax.policies.dpbert import init_params
from dpbert_jax.programs import on_host
from dpbert_jax.training.arguments import TrainArguments


class Asking(NamedTuple):
    """The executor that answers, and the shapes of its batches."""

    platform: str
    executor: str = "packed"
    batch_size: int = CHUNK_ROWS
    length_buckets: Sequence[int] | None = None  # default: those of `predict`

    @property
    def by_one_program(self) -> bool:
        return self.platform != "cpu"

    def teacher(self, dense: Model, planned: DPBertConfig) -> Model:
        """The dense model in the form that it is asked in."""
        if not self.by_one_program:
            return dense
        config = dataclasses.replace(planned, calibration=None, adapters=None)
        with on_host(self.platform):
            drawn = jax.device_get(init_params(config, 0, ("planner",)))
        return dataclasses.replace(dense, config=config, params={**dense.params, **drawn})

    def look(self, model: Model) -> Callable[[Mapping[str, np.ndarray]], Any] | None:
        """A function from a batch to the model's gate logits; None: no program for it is there."""
        if not self.by_one_program:
            return None
        execute = model.executor(self.executor)
        return lambda batch: execute(batch, Rule(1.0, -np.inf, 0)).gate_logits

    def in_batches(self, args: TrainArguments) -> "Asking":
        """In batches of few shapes: for many small splits, each of another size."""
        return self._replace(
            executor="chunked",
            batch_size=args.per_device_eval_batch_size,
            length_buckets=args.length_buckets,
        )

    def flags(self) -> dict[str, Any]:
        """Those of `eval.py` that have it ask alike."""
        if not self.by_one_program:
            return {}
        return {"executor": self.executor, "per_device_eval_batch_size": self.batch_size}


def asking(platform: str, args: TrainArguments) -> Asking:
    """How a run on this kind of device asks; `args` have its length buckets."""
    if platform == "cpu":
        return Asking(platform)
    return Asking(platform, "chunked", args.per_device_eval_batch_size, args.length_buckets)


def teacher_logits(teacher: Model, split: TokenizedSplit, how: Asking) -> np.ndarray:
    """What the dense model says of a split's rows; [N, C]."""
    return asker(teacher, how, progress="teacher")(split)


def asker(
    teacher: Model, how: Asking, progress: str | None = None
) -> Callable[[TokenizedSplit], np.ndarray]:
    """The same for many splits, by one executor."""
    execute = teacher.executor(how.executor)
    return lambda split: (
        predict(
            execute,
            resolve_rule(teacher.config, 1.0),
            teacher.config,
            split,
            batch_size=how.batch_size,
            max_seq_length=teacher.max_seq_length,
            length_buckets=how.length_buckets,
            warm_up=False,
            progress=progress,
        ).logits
    )
