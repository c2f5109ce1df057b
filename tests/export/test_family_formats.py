"""Every family in every format: what PyTorch's own class answers, and this library's plans."""

import importlib.util
from functools import partial

import jax
import numpy as np
import pytest
from golden_models import FAMILIES, golden
from transformers import BertTokenizer

from dpbert_jax.config import Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.export.onnx import dense_onnx
from dpbert_jax.export.onnx_planned import planned_onnx
from dpbert_jax.export.stablehlo import stablehlo_program
from dpbert_jax.export.torch_folder import save_torch_folder
from dpbert_jax.hub import load_params
from dpbert_jax.inference import make_executor, resolve_rule

GRID = Calibration((0.4, 0.7, 1.0), (1.0, 0.0, -2.0))
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def planned(tmp_path):
    """A function family -> golden model, config with a planner, parameters."""

    def make(family):
        model = golden(family)
        folder = model.write(tmp_path)
        config = DPBertConfig(read_config(folder).encoder, PlannerConfig(min_budget=0.4), GRID)
        params = load_params(folder, config, fresh=("planner",))
        return model, config, jax.tree.map(np.asarray, params)

    return make


def onnx_answers(graph, inputs):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert {given.name for given in session.get_inputs()} == set(inputs)
    names = [made.name for made in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def check(answer, model, config, params):
    """`answer(budget)` gives logits and plans: PyTorch's with all layers, ours with some."""
    logits, layer_mask = answer(1.0)
    np.testing.assert_allclose(logits, model.logits, rtol=0, atol=1e-5)
    assert layer_mask.all()
    wanted = make_executor("cond", config, params)(model.batch, resolve_rule(config, 0.7, "top_k"))
    logits, layer_mask = answer(0.7)
    np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(layer_mask, wanted.layer_mask)


@every_family
def test_onnx(family, planned):
    model, config, params = planned(family)
    inputs = {name: np.int64(model.batch[name]) for name in config.encoder.inputs}
    dense = onnx_answers(dense_onnx(config.encoder, params), inputs)["logits"]
    np.testing.assert_allclose(dense, model.logits, rtol=0, atol=1e-5)

    def answer(graph, budget):
        made = onnx_answers(graph, {**inputs, "budget": np.array(budget, np.float32)})
        return made["logits"], made["layer_mask"]

    check(partial(answer, planned_onnx(config, params, "top_k")), model, config, params)
    int8 = planned_onnx(config, params, "top_k", int8=True)
    logits, _ = answer(int8, 1.0)
    assert np.abs(logits - model.logits).max() < 0.1 * np.abs(model.logits).max()


@every_family
def test_stablehlo(family, planned):
    model, config, params = planned(family)
    program = stablehlo_program(config, params, "top_k")
    inputs = [np.int32(model.batch[name]) for name in config.encoder.inputs]

    def answer(budget):
        made = program.call(*inputs, np.float32(budget))
        return np.asarray(made["logits"]), np.asarray(made["layer_mask"])

    check(answer, model, config, params)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@every_family
def test_pytorch(family, planned, tmp_path):
    import torch
    import transformers

    model, config, params = planned(family)
    folder = tmp_path / "exported"
    words = [f"w{i}" for i in range(90)]
    tokenizer = BertTokenizer(
        vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    )
    save_torch_folder(folder, config, params, tokenizer)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    loaded = load(folder, trust_remote_code=True).eval()
    tensors = {n: torch.from_numpy(np.int64(model.batch[n])) for n in config.encoder.inputs}

    def answer(budget):
        with torch.inference_mode():
            made = loaded(**tensors, budget=budget, plan_rule="top_k")
        return made.logits.numpy(), made.layer_mask.numpy()

    check(answer, model, config, params)
    longest = torch.full((1, config.encoder.longest_input + 1), 5)
    with pytest.raises(ValueError, match=f"the model has {config.encoder.longest_input} positions"):
        loaded(input_ids=longest)
    # The same folder is a dense model of the family's own class.
    classes = config.encoder.family.classes
    dense = getattr(transformers, f"{classes}ForSequenceClassification").from_pretrained(folder)
    with torch.inference_mode():
        logits = dense.eval()(**tensors).logits.numpy()
    np.testing.assert_allclose(logits, model.logits, rtol=0, atol=1e-5)
