"""Starts from a model with another head: it is replaced, said to be, or refused with the flag."""

import json
import logging

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpbert_jax.config import DPBertConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_params
from dpbert_jax.hub.keys import by_prefix
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.run import train

HEAD = ("head",)


@pytest.fixture
def source(tiny_folder, tmp_path):
    """A function (extra tensors, dropped prefix) -> the pretrained folder, so changed."""

    def change(extra, dropped=None):
        folder = tmp_path / "source"
        folder.mkdir()
        for path in tiny_folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        tensors = load_file(folder / "model.safetensors")
        tensors = {k: v for k, v in tensors.items() if not (dropped and k.startswith(dropped))}
        save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


def classifier(classes):
    return {
        "classifier.weight": np.ones((classes, 16), np.float32),
        "classifier.bias": np.ones(classes, np.float32),
    }


@pytest.mark.parametrize("classes", [1, 3])
def test_a_head_of_other_classes_is_refused_with_the_flag_that_replaces_it(classes, source, caplog):
    folder = source(classifier(classes))
    config = read_config(folder)
    wanted = (
        rf"classifier\.weight has shape \(16, {classes}\), expected \(16, 2\).*"
        "--ignore_mismatched_sizes"
    )
    with pytest.raises(UserError, match=wanted):
        load_params(folder, config, fresh=HEAD)
    with caplog.at_level(logging.INFO):
        params = load_params(folder, config, fresh=HEAD, ignore_mismatched_sizes=True, seed=3)
    assert "newly initialised: classifier.* (2 tensors)" in caplog.text
    kernel = params["head"]["classifier"]["kernel"]
    assert kernel.shape == (16, 2) and not (kernel == 1).any()
    stored = load_file(folder / "model.safetensors")["bert.pooler.dense.weight"]
    np.testing.assert_array_equal(params["head"]["pooler"]["kernel"], stored.T)


def test_a_head_that_fits_is_kept_with_the_flag_as_well(source):
    folder = source(classifier(2))
    config = read_config(folder)
    params = load_params(folder, config, fresh=HEAD, ignore_mismatched_sizes=True)
    assert (params["head"]["classifier"]["kernel"] == 1).all()


def test_the_flag_excuses_no_misfit_of_the_encoder(source):
    folder = source({"bert.embeddings.LayerNorm.weight": np.ones(3, np.float32)})
    config = read_config(folder)
    with pytest.raises(UserError, match=r"LayerNorm\.weight has shape \(3,\)") as error:
        load_params(folder, config, fresh=HEAD, ignore_mismatched_sizes=True)
    assert "--ignore_mismatched_sizes" not in str(error.value)


@pytest.mark.parametrize(
    ("extra", "listed"),
    [
        (
            {"qa_outputs.weight": np.ones((2, 16)), "qa_outputs.bias": np.ones(2)},
            "of another head, left out: qa_outputs.* (2 tensors)",
        ),
        (
            {f"cls.predictions.{i}": np.ones(2) for i in range(8)},
            "left out: cls.* (8 tensors)",
        ),
        (classifier(9), "of another head, newly initialised: classifier.* (2"),
        (classifier(2), "of another head, newly initialised: classifier.* (2"),
    ],
    ids=["question_answering", "masked_lm", "token_classification", "two_token_classes"],
)
def test_heads_of_other_kinds_are_left_out_and_listed_once(extra, listed, source, caplog):
    folder = source(extra, dropped="bert.pooler")
    with caplog.at_level(logging.INFO):
        params = load_params(folder, read_config(folder), fresh=HEAD, seed=1)
    assert caplog.text.count(listed) == 1
    assert not (params["head"]["classifier"]["kernel"] == 1).any()
    with pytest.raises(UserError, match=r"missing bert\.pooler\.\* \(2 tensors\)"):
        load_params(folder, read_config(folder))


def test_a_model_is_not_mistaken_for_a_head(source):
    folder = source({})
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"module.{key}": value for key, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing .*; unexpected module\.\* \(\d\d tensors\)"):
        load_params(folder, DPBertConfig(read_config(folder).encoder), fresh=HEAD)


def test_lists_are_by_prefix_and_name_a_single_tensor():
    layer = [f"bert.encoder.layer.{i}.{name}" for i in (3, 11) for name in "ab"]
    assert by_prefix([*layer, "cls.a.b", "cls.c", "bert.pooler.dense.bias", "extra"]) == (
        "bert.encoder.layer.11.* (2 tensors), bert.encoder.layer.3.* (2 tensors), "
        "bert.pooler.dense.bias, cls.* (2 tensors), extra"
    )


def test_training_starts_from_another_head_whatever_its_config_says(
    source, run_flags, tmp_path, caplog
):
    folder = source(classifier(3))
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {str(i): f"class {i}" for i in range(3)}, "problem_type": "regression"}
    (folder / "config.json").write_text(json.dumps(config))
    flags = {**run_flags, "model_name_or_path": str(folder), "num_train_epochs": 0.1}
    flags |= {"num_planner_epochs": 0.1, "num_final_epochs": 0.0}
    with pytest.raises(UserError, match="--ignore_mismatched_sizes"):
        train(TrainArguments(output_dir=str(tmp_path / "run"), **flags))
    assert not (tmp_path / "run").exists()
    with caplog.at_level(logging.INFO):
        train(
            TrainArguments(output_dir=str(tmp_path / "run"), ignore_mismatched_sizes=True, **flags)
        )
    assert "newly initialised: classifier.* (2 tensors)" in caplog.text
    assert read_config(tmp_path / "run").encoder.labels == ("negative", "positive")
    with pytest.raises(UserError, match="that of a --teacher is kept"):
        TrainArguments(output_dir="run", teacher="there", ignore_mismatched_sizes=True)
