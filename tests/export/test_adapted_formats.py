"""Adapters by depth in every format: a plan's own, as this library adds them."""

import jax
import numpy as np
import pytest
from golden_models import FAMILIES, golden

from dpbert_jax.config import AdapterConfig, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.export.onnx_planned import planned_onnx
from dpbert_jax.export.stablehlo import stablehlo_program
from dpbert_jax.export.torch_folder import save_torch_folder
from dpbert_jax.hub import load_params
from dpbert_jax.inference import make_executor, resolve_rule

GRID = Calibration((0.4, 0.7, 1.0), (1.0, 0.0, -2.0))


# Of ranks. Most families differ in names and embeddings only, which no adapter touches.
QUICK = [("bert", 0), ("bert", 2), ("mpnet", 2)]
OTHERS = sorted(set(FAMILIES) - {family for family, _ in QUICK})
MODELS = [*QUICK, *(pytest.param(family, 2, marks=pytest.mark.slow) for family in OTHERS)]


def model_of(family, rank, folder):
    """Golden model, config with adapters, parameters whose adapters say something."""
    model = golden(family)
    planner = PlannerConfig(min_budget=0.4)
    config = DPBertConfig(
        read_config(model.write(folder)).encoder, planner, GRID, adapters=AdapterConfig(rank)
    )
    params = load_params(folder, config, fresh=("planner", "adapters"))
    random = np.random.default_rng(0)

    def stirred(leaf):
        leaf = np.asarray(leaf)
        return leaf + 0.1 * random.standard_normal(leaf.shape).astype(np.float32)

    own = jax.tree.map(stirred, params["adapters"])
    return model, config, {**jax.tree.map(np.asarray, params), "adapters": own}


def check(answer, model, config, params):
    """`answer(budget, rule)` gives logits and plans."""
    cond = make_executor("cond", config, params)
    seen = set()
    for budget, rule in (
        (1.0, "threshold"),
        (0.7, "top_k"),
        (0.4, "threshold"),
        (0.7, "threshold"),
    ):
        wanted = cond(model.batch, resolve_rule(config, budget, rule))
        logits, layer_mask = answer(budget, rule)
        np.testing.assert_array_equal(layer_mask, wanted.layer_mask)
        np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=2e-5)
        seen |= set(np.asarray(layer_mask).sum(axis=1).tolist())
    assert len(seen) > 1  # plans of several depths, all layers among them


@pytest.mark.parametrize(("family", "rank"), MODELS)
def test_onnx(family, rank, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, config, params = model_of(family, rank, tmp_path)
    sessions = {
        rule: runtime.InferenceSession(
            planned_onnx(config, params, rule).SerializeToString(),
            providers=["CPUExecutionProvider"],
        )
        for rule in ("threshold", "top_k")
    }
    inputs = {name: model.batch[name].astype(np.int64) for name in config.encoder.inputs}

    def answer(budget, rule):
        given = {**inputs, "budget": np.array(budget, np.float32)}
        return sessions[rule].run(["logits", "layer_mask"], given)

    check(answer, model, config, params)


@pytest.mark.parametrize(("family", "rank"), MODELS)
def test_torch(family, rank, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, BertTokenizer

    model, config, params = model_of(family, rank, tmp_path)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={name: i for i, name in enumerate(names)})
    save_torch_folder(tmp_path / "torch", config, params, tokenizer)
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "torch", trust_remote_code=True
    ).eval()
    inputs = {name: torch.tensor(model.batch[name]) for name in config.encoder.inputs}

    def answer(budget, rule):
        with torch.no_grad():
            made = loaded(**inputs, budget=budget, plan_rule=rule)
        return made.logits.numpy(), made.layer_mask.numpy()

    check(answer, model, config, params)
    # The same folder is still the dense model to this library, and the planned one with adapters.
    again = load_params(tmp_path / "torch", read_config(tmp_path / "torch"))
    same = jax.tree.map(np.array_equal, again["adapters"], params["adapters"])
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("rank", [0, 2])
def test_stablehlo(rank, tmp_path):
    model, config, params = model_of("bert", rank, tmp_path)
    exported = {rule: stablehlo_program(config, params, rule) for rule in ("threshold", "top_k")}

    def answer(budget, rule):
        inputs = [np.int32(model.batch[name]) for name in config.encoder.inputs]
        made = exported[rule].call(*inputs, np.float32(budget))
        return np.asarray(made["logits"]), np.asarray(made["layer_mask"])

    check(answer, model, config, params)
