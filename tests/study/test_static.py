"""Static models: some layers of a dense one, renumbered, and what they share."""

import dataclasses

import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.inference import Rule, make_executor
from dpbert_jax.study.static import keep_layers


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_static_model_answers_as_the_plan_of_its_layers(family, random_params, random_batch):
    extra = {"type_vocab_size": 1, "pad_token_id": 1} if family == "mpnet" else {}
    encoder = dataclasses.replace(TINY, model_type=family, num_hidden_layers=4, **extra)
    config, layers = DPBertConfig(encoder), [0, 2, 3]
    params = random_params(config)
    kept, own = keep_layers(config, params, layers)
    assert kept.encoder.num_hidden_layers == 3
    batch, rule = random_batch(5), Rule(1.0, -np.inf, 9)
    states = make_executor("masked", kept, own)(batch, rule).logits
    again = make_executor("packed", kept, own)(batch, rule).logits
    np.testing.assert_allclose(again, states, atol=1e-4)
    # The same layers of the whole model, by mixing the others out.
    whole = {**params, "layer_1": params["layer_2"], "layer_2": params["layer_3"]}
    renumbered = DPBertConfig(dataclasses.replace(encoder, num_hidden_layers=3))
    wanted = make_executor("masked", renumbered, whole)(batch, rule).logits
    np.testing.assert_allclose(states, wanted, atol=1e-6)
