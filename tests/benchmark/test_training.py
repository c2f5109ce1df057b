"""The training benchmark: same work on both sides, same rows everywhere. No time is judged."""

import dataclasses
import json

import jax
import pytest

from dpbert_jax.benchmark import peers, training
from dpbert_jax.benchmark.peers import Peer
from dpbert_jax.benchmark.training import REFERENCE, TrainingArguments, benchmark_training
from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.data import batches, load_task
from dpbert_jax.errors import UserError
from dpbert_jax.hub.folders import save_weights
from dpbert_jax.training.stage import DENSE, JOINT, STAGES


@pytest.fixture
def flags(tiny_folder, sentence_files, monkeypatch):
    """A function (more flags) -> arguments for the tiny model on the small csv files."""
    files = sentence_files["classes"]
    monkeypatch.setattr(training, "load_task", lambda task_name, data_dir: load_task(**files))
    values = {
        "model_name_or_path": str(tiny_folder),
        "per_device_train_batch_size": 4,
        "max_seq_length": 16,
    }
    values |= {"max_seq_length": 16, "steps": 3, "repeats": 2, "threads": 1}
    return lambda **more: TrainingArguments(**(values | more))


@pytest.mark.slow
def test_report(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(peers.PACKAGES, "torch", ("no_such_module",))
    path = tmp_path / "deep" / "out.json"
    report = benchmark_training(flags(json=str(path)))
    printed = capsys.readouterr().out.strip().splitlines()
    assert json.loads(printed[-1]) == json.loads(path.read_text()) == report
    assert set(report["variants"]) == {f"ours, {stage.name}" for stage in STAGES}
    assert report["rows"] == 12 and set(report["skipped_peers"]) == {"torch"}
    for row in report["variants"].values():
        assert row["min_step_ms"] <= row["median_step_ms"] and row["ratio"] is None
        assert 0 < row["examples_per_second"] <= row["best_examples_per_second"]


def test_a_teacher_answers_with_as_many_classes_as_the_model_has(flags, random_split):
    encoder = dataclasses.replace(TINY, num_labels=5)
    made = training.our_batches(random_split(8), JOINT, encoder, flags())
    assert {batch["teacher_logits"].shape for batch in made} == {(4, 5)}


def test_every_variant_passes_over_the_same_rows(flags, random_split):
    args, split = flags(per_device_train_batch_size=4), random_split(24)
    passes = training.torch_batches(split, 63, args)
    passes["ours"] = training.our_batches(
        split, DENSE, dataclasses.replace(TINY, pad_token_id=63), args
    )
    for made in passes.values():
        assert [len(batch["labels"]) for batch in made] == [4] * 6
        for batch in made:
            assert set(batch["input_ids"][batch["attention_mask"] == 0]) <= {63}
        # The first token of a row is its number.
        assert sorted(n for batch in made for n in batch["input_ids"][:, 0]) == list(range(24))
    widths = {name: [b["input_ids"].shape[1] for b in made] for name, made in passes.items()}
    longest = [b["attention_mask"].sum(axis=1).max() for b in passes[REFERENCE]]
    assert widths[REFERENCE] == longest
    assert all(width % 8 == 0 for width in widths["torch, dynamic padding to a multiple of 8"])
    assert widths["torch, grouped by length"] == sorted(
        widths["torch, grouped by length"], reverse=True
    )


def test_torch_takes_the_same_step(flags, random_params, random_split, tmp_path):
    """Without dropout: loss, gradient and the number of parameters agree, step after step."""
    if peers.available(["torch"])[1]:
        pytest.skip("torch is not installed")
    bert = dataclasses.replace(
        TINY,
        num_hidden_layers=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    config = DPBertConfig(bert)
    params = jax.device_get(random_params(config))
    save_weights(tmp_path, config, params)
    split = random_split(12)
    step, state = training.our_step(DENSE, config, params, flags())
    peer = Peer("torch-training", tmp_path, threads=1)
    for batch in batches(split, 4, 16, pad_token_id=bert.pad_token_id):
        state, sums = step(state, batch)
        ((loss, norm, updated),), _ = peer.run([batch])
        assert sums["loss"] == pytest.approx(loss, rel=1e-4)
        assert sums["grad_norm"] == pytest.approx(norm, rel=1e-3)
        assert updated == sum(leaf.size for leaf in jax.tree.leaves(params))
    peer.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"max_seq_length": 64}, "positions for 32"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"per_device_train_batch_size": 100}, "60 training rows, fewer than a batch of 100"),
        ({"json": "."}, "--json . is a folder"),
        ({"model_name_or_path": "no/such/model/at/all"}, "not a folder"),
    ],
)
def test_what_is_refused(change, words, flags):
    with pytest.raises(UserError, match=words):
        benchmark_training(flags(**change))
