"""Every policy, by every executor: the same answers as `masked`, and rows of their own."""

import jax
import numpy as np
import pytest

from dpbert_jax.config import TINY, DPBertConfig, PlannerConfig
from dpbert_jax.errors import UserError
from dpbert_jax.inference import make_executor
from dpbert_jax.inference.path import TokenOutput
from dpbert_jax.policies import POLICIES
from dpbert_jax.policies.rule import Rule
from dpbert_jax.study.smartbert import initial_gates
from dpbert_jax.study.trbert import initial_selectors

CONFIG = DPBertConfig(TINY, PlannerConfig())
RULE = Rule(1.0, 0.5, 2)


@pytest.mark.parametrize("name", POLICIES)
def test_executors_agree_and_rows_are_independent(name, random_params, random_batch):
    exits = {f"exit_{i}": random_params(CONFIG, seed=i)["head"] for i in range(4)}
    random = np.random.default_rng(0)
    halts = {
        f"halt_{i}": {"kernel": random.normal(size=(TINY.hidden_size, 1)), "bias": np.full(1, -2.0)}
        for i in range(4)
    }
    gates = initial_gates(CONFIG, seed=0)
    for gate in gates.values():  # which tell inputs apart
        gate["gate"] = jax.tree.map(lambda a: random.normal(size=a.shape), gate["gate"])
    selectors = initial_selectors(CONFIG, seed=0)
    for selector in selectors.values():
        selector["narrow"] = jax.tree.map(
            lambda a: 9 * random.normal(size=a.shape), selector["narrow"]
        )
    params = {**random_params(CONFIG), **exits, **halts, **gates, **selectors}
    batch = random_batch(6)
    policy = POLICIES[name](CONFIG)
    wanted = make_executor("masked", CONFIG, params, policy=policy)(batch, RULE)
    for executor in ("cond", "chunked", "packed"):
        made = make_executor(executor, CONFIG, params, policy=policy)(batch, RULE)
        np.testing.assert_allclose(made.logits, wanted.logits, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(made.layer_mask, wanted.layer_mask)
    plan = np.ones((6, 4), np.int8)
    if policy.obeys:
        made = make_executor("cond", CONFIG, params, policy=policy)(batch, RULE, plan)
        assert np.all(made.layer_mask)
    else:
        with pytest.raises(UserError, match="obeys none"):
            make_executor("cond", CONFIG, params, policy=policy)(batch, RULE, plan)
    one = {key: value[2:3] for key, value in batch.items()}
    alone = make_executor("cond", CONFIG, params, policy=policy)(one, RULE)
    np.testing.assert_allclose(alone.logits[0], wanted.logits[2], rtol=0, atol=1e-4)
    mask = np.asarray(wanted.layer_mask)
    lengths = batch["attention_mask"].sum(axis=1)
    if not isinstance(wanted, TokenOutput):
        least = mask.sum(axis=1) / 4  # what a plan costs, and the policy's own is more
    else:
        lengths = np.asarray(wanted.tokens)
        least = (mask * lengths).sum(axis=1) / (4 * lengths[:, 0]) * 0.9  # attention is cheaper
    assert (policy.cost(mask, lengths) >= least - 1e-6).all()
