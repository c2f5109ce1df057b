"""The plan table is what an executor gives, plan by plan."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.policies.planner import judge
from dpbert_jax.training.plan_bank import all_plans
from dpbert_jax.training.plan_table import make_table


def planned(layers=4, stem=1, min_layers=0):
    bert = dataclasses.replace(TINY, num_hidden_layers=layers)
    return DPBertConfig(bert, PlannerConfig(stem, min_layers=min_layers))


@pytest.mark.parametrize("stem", [0, 1])
def test_every_plan_of_every_row_is_what_masked_gives(stem, random_params, random_split):
    config = planned(stem=stem)
    params, split = random_params(config), random_split(9)
    plans = all_plans(config)
    some = plans[[5, 0, 3, len(plans) - 1]]  # a bank need be neither complete nor sorted
    execute, rule = make_executor("masked", config, params), resolve_rule(config, 1.0)
    for bank in (plans, some):
        table = make_table(config, params, split, bank, max_seq_length=16)
        assert table.logits.shape == (9, len(bank), 2)
        for number, plan in enumerate(bank):
            mask = np.tile(np.concatenate([np.ones(stem), plan]), (9, 1))
            wanted = predict(
                execute, rule, config, split, batch_size=9, max_seq_length=16, layer_mask=mask
            )
            np.testing.assert_allclose(table.logits[:, number], wanted.logits, atol=1e-4)


def test_the_planners_logits_follow_from_the_features(random_params, random_split):
    config = planned()
    params, split = random_params(config), random_split(9)
    table = make_table(config, params, split, all_plans(config)[:1], max_seq_length=16)
    found = judge(config, params["planner"], jnp.asarray(table.features))
    execute = make_executor("masked", config, params)
    mask = (np.arange(16) < split.lengths[:, None]).astype(np.int32)
    ids = np.zeros((9, 16), np.int32)
    types = np.zeros((9, 16), np.int32)
    ids[mask > 0], types[mask > 0] = split.token_ids, split.type_ids
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    output = execute(batch, resolve_rule(config, 1.0))
    np.testing.assert_allclose(found, output.gate_logits, atol=1e-4)
