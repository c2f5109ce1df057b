"""What a run trains on, and for how long: rows, stages, and what the teacher says of the rows.

All of it follows from the run's flags and data, so that what comes after a run (baselines, sweep)
finds the very rows that the run held out.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TaskData, TokenizedSplit, num_batches, tokenize
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.loop import StagePlan
from dpbert_jax.training.objective import StageName

STAGES: tuple[StageName, ...] = ("dense", "joint", "final")


class Rows(NamedTuple):
    """The training rows, and those held out from all stages: the planner is refitted on them."""

    kept: TokenizedSplit
    kept_numbers: np.ndarray  # where the kept rows stand among all
    held_out: TokenizedSplit


def held_out_rows(rows: int) -> int:
    """How many of the training rows are held out: a tenth, but neither a handful nor thousands."""
    return max(min(32, rows // 2), min(2000, rows // 10))


def training_rows(task: TaskData, tokenizer: Any, args: TrainArguments) -> Rows:
    """Tokenises the training split and holds rows out."""
    examples = task.splits["train"].head(args.max_train_samples)
    if len(examples) < 2:
        raise UserError(f"There are {len(examples)} training rows; at least 2 are needed.")
    every = tokenize(examples, tokenizer, args.max_seq_length)
    count = held_out_rows(len(every))
    order = np.random.default_rng(args.seed).permutation(len(every))
    kept, held_out = np.sort(order[count:]), np.sort(order[:count])
    return Rows(every.take(kept), kept, every.take(held_out))


def global_batch_size(args: TrainArguments) -> int:
    """Rows that a step learns from: on all devices of all processes, in all micro-batches."""
    devices = jax.device_count()
    return args.per_device_train_batch_size * devices * args.gradient_accumulation_steps


def plan_stages(rows: Rows, args: TrainArguments) -> list[StagePlan]:
    """The stages that the flags ask for, one after the other."""
    final = args.num_planner_epochs if args.num_final_epochs is None else args.num_final_epochs
    epochs = {
        "dense": args.num_train_epochs,
        "joint": args.num_planner_epochs,
        "final": final,
    }
    plans: list[StagePlan] = []
    for name in STAGES:
        if name == "dense" and args.teacher:
            continue
        steps = math.ceil(epochs[name] * num_batches(len(rows.kept), global_batch_size(args)))
        if not steps:
            continue
        first = plans[-1].first_step + plans[-1].num_steps if plans else 0
        plans.append(StagePlan(name, len(plans), first, steps))
    return plans


def teacher_logits(
    config: DPBertConfig, params: Params, split: TokenizedSplit, args: TrainArguments
) -> np.ndarray:
    """What the run's dense model says of a split's rows; [N, C]."""
    return predict(
        make_executor("packed", config, params, compute_dtype(args)),
        resolve_rule(config, 1.0),
        config,
        split,
        batch_size=CHUNK_ROWS,
        max_seq_length=args.max_seq_length,
        progress="teacher",
    ).logits


def compute_dtype(args: TrainArguments) -> Any:
    return jnp.bfloat16 if args.bf16 else jnp.float32
