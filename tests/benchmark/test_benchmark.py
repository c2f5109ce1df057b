"""The benchmark end to end on a tiny run: what it writes and refuses. No time is judged."""

import json
import logging

import numpy as np
import pytest

from dpbert_jax.benchmark import exports, peers
from dpbert_jax.benchmark.arguments import BenchmarkArguments
from dpbert_jax.benchmark.command import benchmark
from dpbert_jax.benchmark.subjects import load_subject, random_batch, subset
from dpbert_jax.benchmark.timing import interleaved, summary
from dpbert_jax.errors import UserError
from dpbert_jax.inference import Rule


def flags(run, **more):
    values = {
        "model_name_or_path": str(run),
        "batch_sizes": [1, 3],
        "seq_lengths": [8],
        "keep": [3, 2],
    }
    values |= {"executors": ["cond", "chunked", "packed", "masked"], "repeats": 2, "keep": [3, 2]}
    return BenchmarkArguments(**(values | more))


def test_latency_report_and_plot(tiny_run, tmp_path, capsys):
    path, plot = tmp_path / "deep" / "out.json", tmp_path / "plots" / "out.png"
    report = benchmark(flags(tiny_run, json=str(path), plot=str(plot)))
    printed = capsys.readouterr().out.strip().splitlines()
    assert json.loads(printed[-1]) == json.loads(path.read_text()) == report
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = {(r["variant"], r["keep"], r["batch_size"]) for r in report["rows"]}
    skipping = {(n, k, b) for n in ("cond", "chunked", "packed") for k in (2, 3) for b in (1, 3)}
    alone = {("compiled for these layers", k, 1) for k in (2, 3)}
    rest = {("masked", 3, 1), ("masked", 3, 3), ("planner and plan transfer", None, 1)}
    assert found == skipping | alone | rest
    assert report["plans"] == "planner, top_k"
    for row in report["rows"]:
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["p95_ms"]
    assert {"jax", "numpy"} <= set(report["versions"])


def test_throughput_on_real_sentences(tiny_run, tmp_path, monkeypatch, sentence_files):
    from dpbert_jax.benchmark import throughput
    from dpbert_jax.data import load_task

    files = sentence_files["classes"]
    monkeypatch.setattr(throughput, "load_task", lambda data_dir: load_task(**files))
    plot = tmp_path / "out.png"
    report = benchmark(flags(tiny_run, data_dir="glue", plot=str(plot)))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert report["data"]["rows"] == 20
    whole = [row for row in report["rows"] if row["variant"] == "packed"]
    assert [(row["batch_size"], row["keep"]) for row in whole] == [(512, 3), (512, 2)]
    assert all(row["samples_per_second"] > 0 for row in report["rows"])


def test_random_plans_are_independent_and_of_the_depth_asked(tiny_run):
    subject = load_subject(flags(tiny_run, plans="random"))
    plan = subject.plan(64, 2, seed=0)
    assert plan is not None
    np.testing.assert_array_equal(plan.sum(axis=1), 2)
    assert plan[:, 0].all() and len(np.unique(plan, axis=0)) == 2
    assert load_subject(flags(tiny_run)).plan(64, 2, seed=0) is None


def test_subset_is_the_model_with_the_other_layers_skipped(tiny_run):
    subject = load_subject(flags(tiny_run))
    batch = random_batch(subject.model.config.encoder, 1, 8, seed=0)
    batch["input_ids"] = np.full((1, 8), 7)
    alone = subset(subject.model, 2).executor("cond")(batch, Rule(1.0, -np.inf, 0))
    plan = np.array([[1, 1, 0]])
    whole = subject.model.executor("cond")(batch, Rule(1.0, 0.0, 2), plan)
    np.testing.assert_allclose(alone.logits, whole.logits, atol=1e-5)


def test_variants_take_turns():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in "ab"}
    found = interleaved(calls, {}, repeats=4, rounds=2)
    assert "".join(turns) == "aabb" + "ab" * 4  # compilation and warm-up, then in turns
    assert set(found) == {"a", "b"}
    assert summary([0.001, 0.002, 0.003])["median_ms"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keep": [4]}, "runs 1 .its stem. to 3 layers"),
        ({"keep": []}, "--keep : every value"),
        ({"batch_sizes": [1, 0]}, "--batch_sizes 1 0: every value must be at least 1"),
        ({"seq_lengths": [64]}, "positions for 32"),
        ({"peers": ["tensorrt"]}, "--peers tensorrt"),
        ({"executors": ["warp"]}, "'warp'"),
        ({"plot": "out.bmp"}, "must end in .png"),
        ({"plans": "best"}, "--plans is 'best'"),
        ({"repeats": 0}, "at least 1"),
        ({"executors": []}, "--executors names none"),
        ({"json": __file__ + "/out.json"}, "--json .*out.json cannot be written"),
        ({"json": "."}, "--json . is a folder"),
        ({"model_name_or_path": "no/such/run/at/all"}, "not a folder"),
    ],
)
def test_what_is_refused(change, words, tiny_run):
    with pytest.raises(UserError, match=words):
        benchmark(flags(tiny_run, **change))


def test_layers_kept_follow_the_model(tiny_run):
    assert load_subject(flags(tiny_run, keep=None)).keeps == [3, 2, 1]
    assert load_subject(flags("bert-base", keep=None)).keeps == [12, 9, 6, 3]


def test_a_model_without_a_planner_is_refused(tiny_run):
    with pytest.raises(UserError, match="has no planner"):
        benchmark(flags(tiny_run / "teacher"))


def test_a_peer_that_is_not_installed_is_named_and_skipped(tiny_run, monkeypatch, caplog):
    monkeypatch.setitem(peers.PACKAGES, "torch", ("no_such_module",))
    with caplog.at_level(logging.INFO):
        report = benchmark(flags(tiny_run, batch_sizes=[1], executors=["cond"], peers=["torch"]))
    assert "no_such_module not installed (pip install 'dpbert-jax[peers]')" in caplog.text
    assert set(report["skipped_peers"]) == {"torch"}


def started(name, run, folder):
    """The subject, ragged rows for it, and the peer in its process."""
    if peers.available([name])[1]:
        pytest.skip(f"{name} is not installed")
    subject = load_subject(flags(run))
    batch = random_batch(subject.model.config.encoder, 3, 8, seed=1)
    batch["input_ids"] = batch["input_ids"] % 20
    batch["attention_mask"][1, 5:] = 0
    peers.write_models(folder, [name], subject.model)
    return subject, batch, peers.Peer(name, folder, threads=1)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_a_peer_computes_the_dense_model(name, tiny_run, tmp_path):
    """Ragged rows; in a process of its own, as in the benchmark."""
    subject, batch, peer = started(name, tiny_run, tmp_path)
    (logits,), seconds = peer.run([batch], repeats=2)
    peer.close()
    execute = subject.model.executor("masked")
    np.testing.assert_allclose(logits, execute(batch, Rule(1.0, -np.inf, 2)).logits, atol=1e-5)
    assert len(seconds) == 2


@pytest.mark.parametrize("name", ["export-onnx", "export-int8", "export-torch"])
def test_an_exported_model_is_a_peer_that_skips(name, tiny_run, tmp_path):
    subject, batch, peer = started(name, tiny_run, tmp_path)
    execute = subject.model.executor("masked")
    for keep in (1, 2, 3):
        (logits,), _ = peer.run([exports.with_budget(batch, keep / 3)])
        wanted = execute(batch, subject.rule(keep)).logits
        np.testing.assert_allclose(logits, wanted, atol=0.05 if "int8" in name else 1e-5)
    peer.close()


def test_exported_models_are_not_timed_on_data(tiny_run):
    with pytest.raises(UserError, match="without --data_dir only"):
        flags(tiny_run, data_dir="glue_data/SST-2", peers=["export-onnx"])


def test_a_peer_that_fails_says_why(tmp_path):
    if peers.available(["onnxruntime"])[1]:
        pytest.skip("onnxruntime is not installed")
    with pytest.raises(UserError, match=r"Peer onnxruntime failed: .*fused\.onnx"):
        peers.Peer("onnxruntime", tmp_path, threads=1)
