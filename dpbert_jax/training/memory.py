"""How much memory a training step takes, and what to say where there is less."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.errors import UserError
from dpbert_jax.policies.dpbert import init_params

STATE_COPIES = 5  # parameters, gradients and their sum over devices, Adam's two moments
# Floats kept of a token in a layer for the backward pass, with the temporaries of the pass itself:
# so many times the hidden size, the feed-forward size, and heads x sequence length. Fitted to what
# XLA's own analysis said of MiniLM and BERT-base at lengths 32, 128 and 512: at most 22 % above.
HIDDEN, FEED_FORWARD, ATTENTION = 12, 4, 4


class StepSize(NamedTuple):
    """What a training step's memory on a device depends on, besides the model."""

    rows: int  # of a micro-batch on the device
    length: int  # tokens of a row, padding included
    bf16: bool = False
    gradient_checkpointing: bool = False


def step_bytes(config: DPBertConfig, size: StepSize) -> int:
    """An estimate of what a training step needs on a device, from above; bytes."""
    encoder = config.encoder
    shapes = jax.tree.leaves(jax.eval_shape(lambda: init_params(config, 0)))
    state = STATE_COPIES * 4 * sum(int(np.prod(leaf.shape)) for leaf in shapes)
    inside = (HIDDEN * encoder.hidden_size + FEED_FORWARD * encoder.intermediate_size) * (
        2 if size.bf16 else 4
    ) + ATTENTION * 4 * encoder.num_attention_heads * size.length  # the softmax stays float32
    layers = encoder.num_hidden_layers
    # With checkpointing every layer keeps its input, and one layer at a time has its inside.
    token = layers * inside
    if size.gradient_checkpointing:
        token = layers * 4 * encoder.hidden_size + inside
    return state + size.rows * size.length * token


def device_bytes() -> int:
    """Memory of one of this process's devices; those that are a CPU share the machine's."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return machine // jax.local_device_count()
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0))


def check_memory(config: DPBertConfig, size: StepSize) -> None:
    """Refuses a step that cannot fit, before anything is computed.

    Raises:
        UserError: with the estimate and the flags to change.
    """
    needed, there = _bytes_here(config, size), device_bytes()
    if there and needed > there:
        raise UserError(_advice(needed, f"more than the {_gib(there)} that there are", size))


@contextmanager
def memory_explained(config: DPBertConfig, size: StepSize) -> Iterator[None]:
    """Turns XLA's report that memory ran out into a sentence with the estimate and the flags."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = _bytes_here(config, size)
        raise UserError(_advice(needed, "and the device has run out of it", size)) from error


def _bytes_here(config: DPBertConfig, size: StepSize) -> int:
    # XLA's CPU compiler drops the barriers that checkpointing consists of.
    checkpointing = size.gradient_checkpointing and jax.default_backend() != "cpu"
    return step_bytes(config, size._replace(gradient_checkpointing=checkpointing))


def _advice(needed: int, verdict: str, size: StepSize) -> str:
    return (
        f"A training step of {size.rows} rows on each device takes about {_gib(needed)}, {verdict}."
        " Lower --per_device_train_batch_size and raise --gradient_accumulation_steps by as much, "
        "lower --max_seq_length, or (on TPU and GPU) add --gradient_checkpointing or --bf16."
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
