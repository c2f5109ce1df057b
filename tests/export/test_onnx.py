"""ONNX graphs answer as this library does, and leave out what a plan leaves out."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest

from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.errors import UserError
from dpbert_jax.export.onnx import dense_onnx
from dpbert_jax.export.onnx_planned import planned_onnx
from dpbert_jax.export.onnx_quantize import WEIGHT_BOUND


def session_of(model):
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def run(model, batch, budget=None):
    """All outputs of the graph."""
    session = session_of(model)
    inputs = {name: np.int64(value) for name, value in batch.items()}
    if budget is not None:
        inputs["budget"] = np.array(budget, np.float32)
    return session.run(None, inputs)


@pytest.mark.parametrize("rows, length", [(1, 5), (6, 11)])
@pytest.mark.parametrize("plan_rule", ["threshold", "top_k"])
def test_planned_graph_answers_as_this_library(
    any_config, plan_rule, rows, length, random_params, random_batch, reference, budgets
):
    params, batch = random_params(any_config), random_batch(rows, length)
    model = planned_onnx(any_config, params, plan_rule)
    for budget in budgets(any_config):
        logits, layer_mask, gate_logits = run(model, batch, budget)
        wanted = reference(any_config, params, batch, budget, plan_rule)
        np.testing.assert_array_equal(layer_mask, wanted[1])
        np.testing.assert_allclose(logits, wanted[0], atol=2e-5)
        np.testing.assert_allclose(gate_logits, wanted[2], atol=1e-5)


def test_a_budget_out_of_range_is_held_to_the_range(planned_config, random_params, random_batch):
    params, batch = random_params(planned_config), random_batch(4)
    for plan_rule in ("threshold", "top_k"):
        model = planned_onnx(planned_config, params, plan_rule)
        for asked, held in ((0.1, 0.6), (1.7, 1.0)):
            for found, wanted in zip(
                run(model, batch, asked), run(model, batch, held), strict=True
            ):
                np.testing.assert_array_equal(found, wanted)


def test_layers_that_no_row_needs_are_not_computed(
    planned_config, random_params, random_batch, spoil_unneeded
):
    params, batch = random_params(planned_config), random_batch(1)
    clean = run(planned_onnx(planned_config, params, "top_k"), batch, 0.6)
    spoilt = spoil_unneeded(planned_config, params, clean[1])
    found = run(planned_onnx(planned_config, spoilt, "top_k"), batch, 0.6)
    np.testing.assert_array_equal(found[0], clean[0])
    assert np.isnan(run(planned_onnx(planned_config, spoilt, "top_k"), batch, 1.0)[0]).all()


def test_rows_of_a_batch_do_not_touch_each_other(planned_config, random_params, random_batch):
    params, batch = random_params(planned_config), random_batch(6)
    model = planned_onnx(planned_config, params)
    together = run(model, batch, 0.7)
    assert len(np.unique(together[1], axis=0)) > 1
    for row in range(6):
        alone = run(model, {name: value[row : row + 1] for name, value in batch.items()}, 0.7)
        np.testing.assert_array_equal(alone[1][0], together[1][row])
        np.testing.assert_allclose(alone[0][0], together[0][row], atol=1e-5)


def test_int8_layers_stay_near_and_stem_planner_and_head_stay_float(
    any_config, random_params, random_batch, reference
):
    params, batch = random_params(any_config), random_batch(6)
    model = planned_onnx(any_config, params, "threshold", int8=True)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stored = {name for name, kind in kinds.items() if kind == onnx.TensorProto.INT8}
    for part in ("qkv", "attention_output", "intermediate", "output"):
        for i in range(any_config.encoder.num_hidden_layers):
            planned = i >= any_config.stem_layers
            assert (f"layer_{i}.{part}.kernel_quantized" in stored) == planned
            assert (f"layer_{i}.{part}.kernel" in kinds) != planned
    for name in ("word_embeddings", "planner.input.kernel", "classifier.kernel"):
        assert kinds[name] == onnx.TensorProto.FLOAT
    wanted = reference(any_config, params, batch, 1.0)
    logits, layer_mask, gate_logits = run(model, batch, 1.0)
    np.testing.assert_array_equal(layer_mask, wanted[1])
    np.testing.assert_allclose(gate_logits, wanted[2], atol=1e-5)
    np.testing.assert_allclose(logits, wanted[0], atol=0.1)
    assert not np.array_equal(logits, wanted[0])


def test_an_int8_answer_does_not_depend_on_the_batch(any_config, random_params, random_batch):
    params, batch = random_params(any_config), random_batch(24)
    session = session_of(planned_onnx(any_config, params, "threshold", int8=True))
    inputs = {name: np.int64(value) for name, value in batch.items()}
    inputs["budget"] = np.array(any_config.planner.min_budget, np.float32)
    together = session.run(None, inputs)
    for row in range(24):
        length = batch["attention_mask"][row].sum()  # alone there is no padding either
        one = {name: inputs[name][row : row + 1, :length] for name in batch}
        alone = session.run(None, {**inputs, **one})
        np.testing.assert_array_equal(alone[1][0], together[1][row])
        np.testing.assert_allclose(alone[0][0], together[0][row], atol=1e-4)


def test_weights_of_eight_bits_cannot_saturate_sixteen():
    assert 2 * 255 * WEIGHT_BOUND < 2**15


@pytest.mark.parametrize("int8", [False, True])
def test_no_input_but_the_tokenizers_is_required(planned_config, random_params, random_batch, int8):
    params, batch = random_params(planned_config), random_batch(6)
    config = dataclasses.replace(planned_config, default_budget=0.7)
    model = planned_onnx(config, params, int8=int8)
    session = session_of(model)
    assert [each.name for each in session.get_inputs()] == list(batch)
    assert session.get_outputs()[0].name == "logits"
    default, same, other = (run(model, batch, budget) for budget in (None, 0.7, 1.0))
    for part, wanted in zip(default, same, strict=True):
        np.testing.assert_array_equal(part, wanted)
    assert default[1].sum() < other[1].sum()


def test_more_tokens_than_positions_are_refused_in_words(
    planned_config, random_params, random_batch
):
    longest = planned_config.encoder.max_position_embeddings
    params = random_params(planned_config)
    dense = {name: value for name, value in params.items() if name != "planner"}
    for model, budget in (
        (planned_onnx(planned_config, params), 0.7),
        (dense_onnx(planned_config.encoder, dense), None),
    ):
        assert np.isfinite(run(model, random_batch(2, longest), budget)[0]).all()
        with pytest.raises(Exception, match=rf"'at_most_{longest}_tokens'.* idx={longest + 1} "):
            run(model, random_batch(2, longest + 1), budget)


@pytest.mark.parametrize("rows, length", [(1, 5), (6, 11)])
def test_dense_graph_answers_as_this_library(rows, length, random_params, random_batch, reference):
    config = DPBertConfig(TINY)
    params, batch = random_params(config), random_batch(rows, length)
    (logits,) = run(dense_onnx(config.encoder, params), batch)
    wanted, _, _ = reference(config, params, batch, 1.0)
    np.testing.assert_allclose(logits, wanted, atol=2e-5)


def test_what_cannot_be_written_is_refused(planned_config, random_params):
    params = random_params(planned_config)
    with pytest.raises(UserError, match="no planner"):
        planned_onnx(DPBertConfig(TINY), params)
    with pytest.raises(UserError, match="no thresholds"):
        planned_onnx(dataclasses.replace(planned_config, calibration=None), params)
    planned_onnx(dataclasses.replace(planned_config, calibration=None), params, "top_k")
