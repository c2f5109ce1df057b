"""The estimate of a step's memory: held against XLA's own, and told to who asks for too much."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import BERT_BASE, DPBertConfig
from dpbert_jax.errors import UserError
from dpbert_jax.policies.dpbert import DPBert, init_params
from dpbert_jax.training import memory
from dpbert_jax.training.memory import StepSize, check_memory, memory_explained, step_bytes
from dpbert_jax.training.stage import DENSE
from dpbert_jax.training.step import make_gradients

ROWS, LENGTH = 16, 64
# Two layers as wide as MiniLM's, and few words: the layers are what is measured.
BERT = dataclasses.replace(
    BERT_BASE, hidden_size=384, intermediate_size=1536, num_hidden_layers=2, vocab_size=64
)
CONFIG = DPBertConfig(BERT)
SIZE = StepSize(ROWS, LENGTH)


def gradients(checkpointing=False):
    """The compiled gradient program's arguments and itself."""
    rows, words = (1, 1, ROWS), (1, 1, ROWS, LENGTH)
    integers, floats = partial(np.ones, dtype=np.int32), partial(np.ones, dtype=np.float32)
    shard = {name: integers(words) for name in ("input_ids", "attention_mask", "token_type_ids")}
    shard |= {"labels": integers(rows) * 0, "weights": floats(rows), "positions": integers(rows)}
    model = DPBert(CONFIG, jnp.float32, checkpointing)
    loss = partial(DENSE.loss, model)
    key = jax.random.key_data(jax.random.key(0))
    arguments = (shard, np.zeros(1, np.float32), key, np.float32(0), None)
    return make_gradients(loss, 1, jax.devices()[:1]), arguments


def test_the_estimate_is_above_what_xla_says_but_not_by_much():
    program, arguments = gradients()
    analysis = program.lower(init_params(CONFIG, 0), *arguments).compile().memory_analysis()
    count = sum(leaf.size for leaf in jax.tree.leaves(init_params(CONFIG, 0)))
    activations = step_bytes(CONFIG, SIZE) - memory.STATE_COPIES * 4 * count
    assert 0.6 * activations < analysis.temp_size_in_bytes < 1.1 * activations


def kept_for_the_backward_pass(checkpointing):
    """Bytes that the forward pass leaves, as the compiler of an accelerator would."""
    model = DPBert(CONFIG, jnp.float32, checkpointing)
    words = jnp.ones((ROWS, LENGTH), jnp.int32)

    def forward(params):
        states = model.apply({"params": params}, words, words, words, method="stem")
        return model.apply({"params": params}, states, method="pool")[1].sum()

    shapes = jax.eval_shape(lambda: init_params(CONFIG, 0))
    kept = jax.eval_shape(lambda params: jax.vjp(forward, params)[1], shapes)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def test_checkpointing_keeps_little_for_the_backward_pass():
    assert kept_for_the_backward_pass(True) < 0.4 * kept_for_the_backward_pass(False)


def test_checkpointing_changes_no_gradient():
    params, found = jax.device_get(init_params(CONFIG, 0)), []
    for checkpointing in (False, True):
        program, arguments = gradients(checkpointing)
        found.append(program(params, *arguments))
    close = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, *found)


def test_estimates_are_ordered():
    plain = step_bytes(CONFIG, SIZE)
    assert step_bytes(CONFIG, SIZE._replace(bf16=True)) < plain
    assert step_bytes(CONFIG, SIZE._replace(gradient_checkpointing=True)) < plain
    assert step_bytes(CONFIG, SIZE._replace(rows=2 * ROWS)) > plain


def test_a_batch_that_cannot_fit_is_refused_with_what_to_change():
    with pytest.raises(UserError, match=r"10000000 rows .* GiB, more than .* GiB that there are"):
        check_memory(CONFIG, StepSize(10**7, 128))
    check_memory(CONFIG, StepSize(32, 128))


def test_memory_that_runs_out_is_told_with_the_estimate():
    told = pytest.raises(UserError, match=r"GiB, and the device .*--gradient_accumulation_steps")
    with told, memory_explained(CONFIG, SIZE):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    other = pytest.raises(jax.errors.JaxRuntimeError)
    with other, memory_explained(CONFIG, SIZE):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
