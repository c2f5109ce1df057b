"""Inputs without an embedding and outputs that are no numbers: every executor refuses them."""

import jax
import numpy as np
import pytest

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.errors import UserError
from dpbert_jax.inference import EXECUTORS, make_executor, resolve_rule

CONFIG = DPBertConfig(TINY, PlannerConfig(), Calibration((0.4, 1.0), (0.25, -6.0)))
RULE = resolve_rule(CONFIG, 1.0)


def spoilt(params, *path):
    """The parameters with NaN in one place."""

    def spoil(at, leaf):
        names = tuple(key.key for key in at)
        return leaf.at[0].set(np.nan) if names == path else leaf

    return jax.tree_util.tree_map_with_path(spoil, params)


@pytest.mark.parametrize("name", EXECUTORS)
def test_nan_is_refused_and_the_input_named(name, random_params, random_batch):
    execute = make_executor(
        name, CONFIG, spoilt(random_params(CONFIG), "embeddings", "word_embeddings", "embedding")
    )
    batch = random_batch(3)  # its rows have no token 0
    execute(batch, RULE)
    batch["input_ids"][1:, 1] = 0
    with pytest.raises(UserError, match=r"Input 1 .* has no answer: .*NaN"):
        execute(batch, RULE)
    with pytest.raises(UserError, match="Input 11 "):
        execute({**batch, "indices": np.array([9, 11, 8])}, RULE)
    if name != "packed":  # where the padding lies beside the input
        execute({**batch, "indices": np.array([9, -1, -1])}, RULE)  # no answer is asked of those


def test_a_planner_that_computes_nan_plans_nothing(random_params, random_batch):
    params = spoilt(random_params(CONFIG), "planner", "output", "bias")
    with pytest.raises(UserError, match=r"Input 0 .* has no answer"):
        make_executor("masked", CONFIG, params)(random_batch(2), RULE)


@pytest.mark.parametrize(
    ("name", "size"),
    [("input_ids", "vocab_size is 64"), ("token_type_ids", "type_vocab_size is 2")],
)
def test_ids_without_an_embedding_are_refused(name, size, random_params, random_batch):
    execute = make_executor("masked", CONFIG, random_params(CONFIG))
    for wrong in (-1, 64):
        batch = random_batch(3)
        batch[name][2, 1] = wrong
        with pytest.raises(UserError, match=rf"Row 2 has {wrong} among its {name}, .*{size}"):
            execute(batch, RULE)
