"""The predictor: text in, labels and plans out, the same as the executor gives."""

import numpy as np
import pytest

from dpbert_jax.config import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.inference import Predictor

TEXTS = ["the cat sat on the mat", "a film"]


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return Predictor(str(tiny_run))


def test_each_text_gets_a_label_a_probability_and_its_layers(predictor, tiny_run):
    config = read_config(tiny_run)
    made = predictor(TEXTS, budget=1.0)
    assert [p.layers for p in made] == [tuple(range(config.bert.num_hidden_layers))] * 2
    assert config.bert.labels is not None
    assert all(p.label in config.bert.labels and 0.5 <= p.score <= 1 for p in made)
    assert predictor([], budget=1.0) == []


def test_a_text_does_not_depend_on_its_neighbours_or_order(predictor):
    forward, backward = predictor(TEXTS, budget=0.7), predictor(TEXTS[::-1], budget=0.7)
    for one, other in zip(forward, backward[::-1], strict=True):
        assert (one.label, one.layers) == (other.label, other.layers)
        np.testing.assert_allclose(one.score, other.score, atol=1e-6)


def test_top_k_runs_the_layers_that_the_budget_pays_for(predictor):
    made = predictor(TEXTS, budget=0.7, plan_rule="top_k")
    assert all(len(p.layers) == 2 and p.layers[0] == 0 for p in made)  # of 3, the stem among them


def test_what_cannot_be_done_is_refused(predictor):
    for arguments, words in (
        (("a film",), "list of texts"),
        ((TEXTS, ["a dog"]), "second segments"),
        ((["cat " * 100],), "Text 0 has 102 tokens"),
    ):
        with pytest.raises(UserError, match=words):
            predictor(*arguments)
    with pytest.raises(UserError, match="must lie in"):
        predictor(TEXTS, budget=0.0)
