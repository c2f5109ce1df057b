"""Compressed word embeddings in every format, and int8 and standard operators in ONNX."""

import dataclasses
import math
from functools import partial

import jax
import numpy as np
import pytest
from golden_models import FAMILIES, golden

from dpbert_jax.compress.factorise import factorise, quantise
from dpbert_jax.config import Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.export.onnx import dense_onnx
from dpbert_jax.export.onnx_graph import MICROSOFT
from dpbert_jax.export.onnx_planned import planned_onnx
from dpbert_jax.export.onnx_quantize import stored_params
from dpbert_jax.export.stablehlo import stablehlo_program
from dpbert_jax.export.torch_folder import save_torch_folder
from dpbert_jax.hub import load_params
from dpbert_jax.inference import make_executor, resolve_rule

GRID = Calibration((0.4, 0.7, 1.0), (1.0, 0.0, -2.0))
MODELS = [
    *("bert", "electra", "mpnet"),
    *(
        pytest.param(family, marks=pytest.mark.slow)
        for family in FAMILIES
        if family not in ("bert", "electra", "mpnet")
    ),
]


def compressed_model(family, folder):
    """Batch, config and parameters of a small model whose word table is three clusters."""
    model = golden(family)
    plain = read_config(model.write(folder)).encoder
    params = load_params(folder, DPBertConfig(plain, PlannerConfig(), GRID), fresh=("planner",))
    table = np.asarray(params["embeddings"]["word_embeddings"]["embedding"])
    weights = np.arange(len(table), 0, -1.0)
    factors = factorise(plain, table, weights, math.ceil(0.9 * table.nbytes), 3)
    encoder = dataclasses.replace(plain, compression=factors.compression)
    words = {"word_embeddings": quantise(factors)}
    params = {**params, "embeddings": {**params["embeddings"], **words}}
    return model.batch, DPBertConfig(encoder, PlannerConfig(), GRID), params


def check(answer, batch, config, params, atol=2e-5):
    """`answer(budget)` gives logits and plans."""
    cond, depths = make_executor("cond", config, params), set()
    for budget in (0.4, 0.7, 1.0):
        wanted = cond(batch, resolve_rule(config, budget))
        logits, layer_mask = answer(budget)
        np.testing.assert_array_equal(layer_mask, wanted.layer_mask)
        np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=atol)
        depths |= set(np.asarray(layer_mask).sum(axis=1).tolist())
    assert len(depths) > 1


def run_onnx(graph, config, batch):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    inputs = {name: batch[name].astype(np.int64) for name in config.encoder.inputs}

    def answer(budget):
        return session.run(
            ["logits", "layer_mask"], {**inputs, "budget": np.array(budget, np.float32)}
        )

    return answer


def domains(graph):
    """Those of all operators, inside branches too."""
    every = {node.domain for node in graph.node}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                every |= domains(attribute.g)
    return every


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("family", MODELS)
def test_onnx(family, standard, tmp_path):
    batch, config, params = compressed_model(family, tmp_path)
    graph = planned_onnx(config, params, standard_operators=standard)
    check(run_onnx(graph, config, batch), batch, config, params)
    assert (domains(graph.graph) == {""}) == standard
    assert {opset.domain for opset in graph.opset_import} == domains(graph.graph)


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_onnx_in_int8_throughout_has_the_plans_of_the_weights_that_it_stores(
    family, standard, tmp_path
):
    batch, config, params = compressed_model(family, tmp_path)
    stored = stored_params(config, params)
    graph = planned_onnx(config, stored, int8_all=True, standard_operators=standard)
    check(run_onnx(graph, config, batch), batch, config, stored, atol=0.1)
    close = jax.tree.map(partial(np.allclose, atol=1e-6), stored_params(config, stored), stored)
    assert all(jax.tree.leaves(close))  # rounded again, nothing moves
    assert (MICROSOFT in domains(graph.graph)) != standard
    large = [
        tensor.name
        for tensor in graph.graph.initializer
        if tensor.data_type == 1 and math.prod(tensor.dims) >= config.encoder.hidden_size**2
    ]
    assert {name.split(".")[0] for name in large} <= {"planner", "bias_by_distance"}


@pytest.mark.parametrize("act", ["gelu_new", "relu"])
def test_standard_activations(act, tmp_path):
    batch, config, params = compressed_model("bert", tmp_path)
    encoder = dataclasses.replace(config.encoder, hidden_act=act)
    config = dataclasses.replace(config, encoder=encoder)
    graph = planned_onnx(config, params, standard_operators=True)
    check(run_onnx(graph, config, batch), batch, config, params)


def test_a_dense_graph_is_standard(tmp_path):
    _, config, params = compressed_model("bert", tmp_path)
    assert domains(dense_onnx(config.encoder, params).graph) == {""}


@pytest.mark.parametrize("family", MODELS)
def test_torch_and_the_plain_class_refuses(family, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    batch, config, params = compressed_model(family, tmp_path)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = transformers.BertTokenizer(vocab={name: i for i, name in enumerate(names)})
    save_torch_folder(tmp_path / "torch", config, params, tokenizer)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "torch", trust_remote_code=True
    ).eval()
    inputs = {name: torch.tensor(batch[name]) for name in config.encoder.inputs}

    def answer(budget):
        with torch.no_grad():
            made = loaded(**inputs, budget=budget)
        return made.logits.numpy(), made.layer_mask.numpy()

    check(answer, batch, config, params)
    plain = getattr(transformers, f"{config.encoder.family.classes}ForSequenceClassification")
    with pytest.raises(RuntimeError, match="mismatch"):
        plain.from_pretrained(tmp_path / "torch")
    assert "cannot read them" in (tmp_path / "torch" / "README.md").read_text()
    again = load_params(tmp_path / "torch", read_config(tmp_path / "torch"))
    same = jax.tree.map(np.array_equal, again["embeddings"], params["embeddings"])
    assert all(jax.tree.leaves(same))


def test_stablehlo(tmp_path):
    batch, config, params = compressed_model("bert", tmp_path)
    exported = stablehlo_program(config, params)

    def answer(budget):
        inputs = [np.int32(batch[name]) for name in config.encoder.inputs]
        made = exported.call(*inputs, np.float32(budget))
        return np.asarray(made["logits"]), np.asarray(made["layer_mask"])

    check(answer, batch, config, params)
