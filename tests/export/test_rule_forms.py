"""The rule's forms, JAX's two, ONNX's and PyTorch's, against its table, at the table's borders."""

import dataclasses
import importlib.util
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import TensorProto, helper

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import to_hf_dict
from dpbert_jax.export.onnx_graph import Graph
from dpbert_jax.export.onnx_rule import write_rule
from dpbert_jax.export.torch_folder import REMOTE
from dpbert_jax.policies.gates import hard_gates
from dpbert_jax.policies.rule import DEPTH_TOLERANCE, resolve_rule, rule_table, traced_rule

LAYERS = 10
CONFIG = DPBertConfig(
    dataclasses.replace(TINY, num_hidden_layers=LAYERS),
    PlannerConfig(stem_layers=2, min_budget=0.4, max_budget=0.9, min_layers=4),
    Calibration((0.4, 0.5, 0.7, 0.9), (2.0, 1.25, -0.5, -3.0)),
)
TABLE = rule_table(CONFIG, "threshold")
# Where the rule changes its mind: the grid's points, the ends of the range, whole layers and what
# the tolerance makes of those that are missed by a hair.
DEPTHS = [depth / LAYERS for depth in range(4, 10)]
BUDGETS = sorted(
    {0.4, 0.9, 1.0, *TABLE.budgets, 0.45, 0.6, *DEPTHS}
    | {depth - DEPTH_TOLERANCE / 2 / LAYERS for depth in DEPTHS[1:]}
    | {depth - 2 * DEPTH_TOLERANCE / LAYERS for depth in DEPTHS[1:]}
)


def by_hand(logits, budget, plan_rule):
    """The table read by a person: gates of one row."""
    if budget >= 1:
        return np.ones(len(logits))
    falling = np.argsort(-logits, kind="stable")
    gates = np.zeros(len(logits))
    if plan_rule == "top_k":
        depth = next(d for d in range(LAYERS, 0, -1) if budget >= (d - DEPTH_TOLERANCE) / LAYERS)
        gates[falling[: depth - TABLE.stem_layers]] = 1
        return gates
    threshold = np.interp(budget, TABLE.budgets, TABLE.thresholds)
    gates[logits >= np.float32(threshold)] = 1
    gates[falling[: TABLE.min_gates]] = 1
    return gates


def rows(budget):
    """Logits with a tie, all below the threshold, and two a hair on either side of it.

    A hair is 1e-5: in float32 a form meets the threshold to some ulps.
    """
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (6, CONFIG.num_gates)).astype(np.float32)
    logits[0, 3] = logits[0, 5] = logits[0].max() + 1
    logits[1] -= 20
    threshold = np.interp(budget, TABLE.budgets, TABLE.thresholds)
    logits[2, 4:6] = threshold + 1e-5, threshold - 1e-5
    return logits


def jax_form(plan_rule):
    def gates(logits, budget):
        rule = resolve_rule(CONFIG, budget, plan_rule)
        return hard_gates(jnp.asarray(logits), rule.threshold, rule.top_k, CONFIG.min_gates)

    return gates


def traced_form(plan_rule):
    @jax.jit
    def gates(logits, budget):
        rule = traced_rule(CONFIG, budget, plan_rule)
        return hard_gates(logits, rule.threshold, rule.top_k, CONFIG.min_gates)

    return lambda logits, budget: gates(logits, jnp.float32(budget))


def onnx_form(plan_rule):
    runtime = pytest.importorskip("onnxruntime")
    graph = Graph()
    made = graph.add("Cast", write_rule(graph, CONFIG, plan_rule), to=TensorProto.FLOAT)
    shape = ["batch", CONFIG.num_gates]
    model = graph.as_model(
        "rule",
        [
            helper.make_tensor_value_info("gate_logits", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("budget", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info(made, TensorProto.FLOAT, shape)],
    )
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def gates(logits, budget):
        inputs = {"gate_logits": logits, "budget": np.array(budget, np.float32)}
        return session.run(None, inputs)[0]

    return gates


def torch_form(plan_rule):
    torch = pytest.importorskip("torch")
    source = (REMOTE / "modeling_dpbert.py").read_text(encoding="utf-8")
    # What it needs of the files beside it is their names.
    source = source.replace("from .configuration_dpbert import DPBertConfig", "DPBertConfig = None")
    source = re.sub(r"from \.modules_dpbert import \([^)]*\)", "", source)
    module = {"__name__": "remote"}
    exec(compile(source, "modeling_dpbert.py", "exec"), module)
    form = module["DPBertForSequenceClassification"]
    own = SimpleNamespace(
        config=SimpleNamespace(num_hidden_layers=LAYERS, dpbert=to_hf_dict(CONFIG)["dpbert"]),
        stem_layers=CONFIG.stem_layers,
        least=CONFIG.min_gates,
    )
    own.selected = []
    own._stays = lambda: form._stays(own)
    own._interpolated = lambda budget, values: form._interpolated(own, budget, values)
    own._threshold = lambda budget: form._threshold(own, budget)
    return lambda logits, budget: form._gates(
        own, torch.from_numpy(logits), budget, plan_rule
    ).numpy()


FORMS = {"jax": jax_form, "traced": traced_form, "onnx": onnx_form, "torch": torch_form}


@pytest.mark.parametrize("plan_rule", ["threshold", "top_k"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_table_s_at_its_borders(name, plan_rule):
    if name == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    form = FORMS[name](plan_rule)
    for budget in BUDGETS:
        logits = rows(budget)
        wanted = [by_hand(row, budget, plan_rule) for row in logits]
        np.testing.assert_array_equal(np.asarray(form(logits, budget)), wanted, err_msg=f"{budget}")
