"""What `--verify` sees: labels of every problem, and what depends on the batch."""

import dataclasses

import numpy as np
import pytest
from transformers import BertTokenizer

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.data.tasks import custom_spec
from dpbert_jax.export.formats import ExportOptions, load_artifact, write_artifact
from dpbert_jax.export.verify import verify
from dpbert_jax.export_formats import export_format, export_format_names
from dpbert_jax.model import Model
from dpbert_jax.problem import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL

NAMES = ("toxic", "rude", "spam")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
ROWS = 24
PLAIN = ExportOptions()


@pytest.fixture
def problem(random_params, random_split):
    """A function (problem type, labelled) -> model, split and task of it, all random."""

    def draw(problem_type, labelled=True):
        names = None if problem_type == REGRESSION else NAMES
        bert = dataclasses.replace(
            TINY, num_labels=len(names or "1"), labels=names, problem_type=problem_type
        )
        config = DPBertConfig(
            bert,
            PlannerConfig(hidden_size=8),
            Calibration((0.4, 1.0), (0.9, -3.0)),
            default_budget=0.75,
        )
        several = problem_type == MULTI_LABEL
        random, split = np.random.default_rng(0), random_split(ROWS)
        labels = {
            REGRESSION: random.random(ROWS, np.float32),
            MULTI_LABEL: random.integers(0, 2, (ROWS, 3)).astype(np.float32),
            SINGLE_LABEL: random.integers(0, 3, ROWS, np.int32),
        }[problem_type]
        split = dataclasses.replace(split, labels=labels if labelled else None)
        tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
        model = Model(config, random_params(config), tokenizer, 16)
        return model, split, custom_spec(("text",), names, multi_label=several)

    return draw


def written(folder, model, options=PLAIN):
    """The model's ONNX artifact, as a function."""
    write_artifact(export_format("onnx"), folder, model, options)
    return load_artifact(export_format("onnx"), folder, model, options)


@pytest.mark.parametrize(
    "form, problem_type",
    [
        *((form, MULTI_LABEL) for form in export_format_names()),
        ("onnx", REGRESSION),
        ("onnx", SINGLE_LABEL),
    ],
)
def test_every_problem_goes_through_an_export_and_several_labels_through_all(
    form, problem_type, problem, tmp_path
):
    if form == "huggingface":
        pytest.importorskip("torch", reason="torch is not installed")
    model, split, spec = problem(problem_type)
    (tmp_path / "out").mkdir()
    write_artifact(export_format(form), tmp_path / "out", model, PLAIN)
    call = load_artifact(export_format(form), tmp_path / "out", model, PLAIN)
    for row in verify(call, model, PLAIN, split, spec, 16):
        assert row.agrees
        assert row.score == pytest.approx(row.reference_score, abs=1e-5)
        assert (row.labels_by_batch, row.plans_by_batch) == (0, 0)


def test_rows_without_labels_have_no_score(problem, tmp_path):
    model, split, spec = problem(MULTI_LABEL, labelled=False)
    rows = verify(written(tmp_path, model), model, PLAIN, split, spec, 16)
    assert all(row.agrees and row.score is None for row in rows)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("part", ["labels", "plans"])
def test_what_depends_on_the_batch_is_counted(part, problem_type, problem, tmp_path):
    model, split, spec = problem(problem_type)
    artifact = written(tmp_path, model)

    def call(batch, budget):
        logits, layer_mask = artifact(batch, budget)
        alone = len(logits) == 1
        if alone and batch["input_ids"][0, 0] < 3:  # a row begins with its number
            logits = -logits if part == "labels" else logits
            layer_mask = 1 - layer_mask if part == "plans" else layer_mask
        return logits, layer_mask

    for row in verify(call, model, PLAIN, split, spec, 16):
        counts = (row.labels_by_batch, row.plans_by_batch)
        assert counts == ((3, 0) if part == "labels" else (0, 3))
        assert not row.agrees


def test_int8_is_held_to_the_plans(problem, tmp_path):
    model, split, spec = problem(SINGLE_LABEL)
    options = ExportOptions(int8=True)
    artifact = written(tmp_path, model, options)
    rows = verify(artifact, model, options, split, spec, 16)
    assert all(row.plans_by_batch == 0 for row in rows)

    def call(batch, budget):
        logits, layer_mask = artifact(batch, budget)
        return logits, np.roll(layer_mask, 1, axis=1) if budget == 0.4 else layer_mask

    assert not verify(call, model, options, split, spec, 16)[-1].agrees
