"""The PyTorch module of an exported folder answers as this library does, and goes back to it."""

import dataclasses

import jax
import numpy as np
import pytest
from transformers import BertTokenizer

from dpbert_jax.export.torch_folder import save_torch_folder
from dpbert_jax.hub import load_run

torch = pytest.importorskip("torch", reason="torch is not installed")
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    pipeline,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]


@pytest.fixture
def exported(tmp_path, random_params):
    """A function config -> (folder, parameters, PyTorch model) of an exported random model."""

    def export(config):
        params = random_params(config)
        tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
        save_torch_folder(tmp_path / "model", config, params, tokenizer)
        return tmp_path / "model", params, load(tmp_path / "model")

    return export


def load(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    return model.eval()


def tensors(batch):
    return {name: torch.from_numpy(np.int64(value)) for name, value in batch.items()}


def run(model, batch, budget=1.0, plan_rule="threshold"):
    with torch.inference_mode():
        made = model(**tensors(batch), budget=budget, plan_rule=plan_rule)
    return made.logits.numpy(), made.layer_mask.numpy(), made.gate_logits.numpy()


@pytest.mark.parametrize("plan_rule", ["threshold", "top_k"])
def test_module_answers_as_this_library(
    any_config, plan_rule, exported, random_batch, reference, budgets
):
    _, params, model = exported(any_config)
    for rows, length in ((1, 5), (6, 11)):
        batch = random_batch(rows, length)
        for budget in budgets(any_config):
            found = run(model, batch, budget, plan_rule)
            wanted = reference(any_config, params, batch, budget, plan_rule)
            np.testing.assert_array_equal(found[1], wanted[1])
            np.testing.assert_allclose(found[0], wanted[0], atol=2e-5)
            np.testing.assert_allclose(found[2], wanted[2], atol=1e-5)


def test_plain_bert_loads_the_dense_model(planned_config, exported, random_batch, reference):
    folder, params, _ = exported(planned_config)
    plain = BertForSequenceClassification.from_pretrained(folder).eval()
    batch = random_batch(4)
    with torch.inference_mode():
        logits = plain(**tensors(batch)).logits.numpy()
    wanted, _, _ = reference(planned_config, params, batch, 1.0)
    np.testing.assert_allclose(logits, wanted, atol=2e-5)


def test_layers_that_no_row_needs_are_not_called(planned_config, exported, random_batch):
    _, _, model = exported(planned_config)
    batch, called = random_batch(1), []
    for i, layer in enumerate(model.bert.encoder.layer):
        layer.register_forward_hook(lambda *_, i=i: called.append(i))
    _, layer_mask, _ = run(model, batch, 0.6, "top_k")
    assert called == np.flatnonzero(layer_mask[0]).tolist()
    assert len(called) < planned_config.encoder.num_hidden_layers


def test_attention_mask_may_be_left_out(planned_config, exported):
    _, _, model = exported(planned_config)
    ids = torch.arange(1, 7)[None]
    with torch.inference_mode():
        short, long = model(ids, budget=0.7), model(ids, torch.ones_like(ids), budget=0.7)
    np.testing.assert_array_equal(short.logits, long.logits)


def test_training_reaches_the_layers_that_ran(planned_config, exported, random_batch):
    _, _, model = exported(planned_config)
    model.train()
    batch = tensors(random_batch(1))
    made = model(**batch, labels=torch.tensor([1]), budget=0.6, plan_rule="top_k")
    made.loss.backward()
    for ran, layer in zip(made.layer_mask[0], model.bert.encoder.layer, strict=True):
        assert (layer.output.dense.weight.grad is not None) == bool(ran)
    assert all(parameter.grad is None for parameter in model.planner.parameters())


def test_a_saved_module_comes_back_bitwise(planned_config, exported, tmp_path):
    folder, params, model = exported(planned_config)
    for written in (folder, tmp_path / "again"):
        if written != folder:
            model.save_pretrained(written)
            BertTokenizer.from_pretrained(folder).save_pretrained(written)
        _, config, loaded, _ = load_run(str(written))
        assert config == planned_config
        jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_call_without_a_budget_gets_the_folders_own(planned_config, exported, random_batch):
    config = dataclasses.replace(planned_config, default_budget=0.7)
    _, _, model = exported(config)
    default, same, other = (run(model, random_batch(6), budget) for budget in (None, 0.7, 1.0))
    for part, wanted in zip(default, same, strict=True):
        np.testing.assert_array_equal(part, wanted)
    assert default[1].sum() < other[1].sum()


def test_a_pipeline_of_a_multi_label_model_applies_sigmoid_by_itself(planned_config, exported):
    bert = dataclasses.replace(
        planned_config.encoder,
        num_labels=3,
        labels=("toxic", "rude", "spam"),
        problem_type="multi_label_classification",
    )
    folder, _, model = exported(
        dataclasses.replace(planned_config, encoder=bert, default_budget=0.6)
    )
    tokenizer = BertTokenizer.from_pretrained(folder)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    (answer,) = classify(["good bad"])
    scores = {each["label"]: each["score"] for each in answer}
    with torch.inference_mode():
        logits = model(**tokenizer("good bad", return_tensors="pt"), budget=0.6).logits
    for label, logit in zip(bert.labels, logits[0], strict=True):
        assert scores[label] == pytest.approx(float(torch.sigmoid(logit)), abs=1e-6)
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    made = model(**tokenizer("good bad", return_tensors="pt"), labels=labels, budget=0.6)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert float(made.loss.detach()) == pytest.approx(float(wanted))


def test_more_tokens_than_positions_are_a_sentence(planned_config, exported, random_batch):
    longest = planned_config.encoder.max_position_embeddings
    _, _, model = exported(planned_config)
    assert np.isfinite(run(model, random_batch(1, longest))[0]).all()
    with pytest.raises(ValueError, match=rf"{longest + 1} tokens, .* has {longest} positions"):
        run(model, random_batch(1, longest + 1))


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"budget": 0.2}, r"trained for budgets from 0\.6 to 1\.0"),
        ({"budget": 0.7, "plan_rule": "random"}, "plan_rule is 'random'"),
    ],
)
def test_wrong_requests_are_sentences(asked, message, planned_config, exported, random_batch):
    _, _, model = exported(planned_config)
    with pytest.raises(ValueError, match=message):
        run(model, random_batch(1), **asked)
