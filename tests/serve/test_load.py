"""The load generator: what it reports is what the server did."""

import asyncio
import dataclasses
import gc
import json

import numpy as np
import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.load import command, hostile, traffic
from dpbert_jax.load.command import LoadTestArguments
from dpbert_jax.load.traffic import ClosedLoop, OpenLoop, Sent, Traffic, drive
from dpbert_jax.model import Model

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
TEXTS = ["the film was good", "a dog", "bad bad bad cat on the mat", "sun and walk"]


@pytest.fixture
def rows(served_folder, tmp_path):
    """Texts with the model's own answers at all layers for labels."""
    said = Model.from_pretrained(served_folder).predict(TEXTS)
    lines = ["text\tlabel", *(f"{t}\t{s.label}" for t, s in zip(TEXTS, said, strict=True))]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "rows.tsv")


def test_a_stream_is_reported_as_it_was(client, rows, tmp_path):
    url = str(client.base_url)
    found = command.load_test(
        LoadTestArguments(
            [url],
            [60.0],
            rows,
            seconds=1.0,
            budget=[1.0],
            json=str(tmp_path / "found.json"),
            plot=str(tmp_path / "found.png"),
        )
    )
    [report] = found
    assert report["status"] == {"200": report["requests"]} and 30 < report["requests"] < 90
    assert report["metrics"]["accuracy"] == 1.0
    assert (report["budget"], report["cost"]) == (1.0, pytest.approx(1.0, abs=0.2))
    assert 0 < report["p50_ms"] <= report["p95_ms"] <= report["p99_ms"]
    assert json.loads((tmp_path / "found.json").read_text()) == found
    assert (tmp_path / "found.png").read_bytes()[:4] == b"\x89PNG"


def test_servers_are_loaded_in_turns_at_each_rate(client, rows):
    url = str(client.base_url)
    found = command.load_test(
        LoadTestArguments([url, url], [20.0, 40.0], rows, seconds=0.2, burst_rate=90.0, rounds=2)
    )
    assert [each["rate"] for each in found] == [20, 20, 40, 40] * 2
    numbers = [each["requests"] for each in found]
    assert numbers[::2] == numbers[1::2] and len(set(numbers)) > 2  # in pairs the same stream


def test_in_a_closed_loop_no_more_than_the_clients_are_under_way(client, rows):
    found = command.load_test(
        LoadTestArguments(
            [str(client.base_url)], None, rows, connections=[1, 3], seconds=0.5, hostile=0.1
        )
    )
    assert [(each["connections"], each["rate"]) for each in found] == [(1, None), (3, None)]
    for each in found:
        assert each["status"] == {"200": each["requests"]} and each["requests"] >= 3
        assert each["generator_late_ms"] < 1000 and each["metrics"]["accuracy"] > 0
    seconds = found[0]["requests"] / found[0]["answered_per_second"]
    assert found[0]["requests"] * found[0]["mean_ms"] / 1000 <= 1.01 * seconds


def test_a_closed_loop_ends_where_the_server_is_gone(monkeypatch):
    monkeypatch.setattr(traffic, "RETRY_SECONDS", 0.0)
    sent = asyncio.run(drive("http://127.0.0.1:9", ["a"], ClosedLoop(2, 0.05))).sent
    assert len(sent) >= 2 and {each.status for each in sent} == {hostile.FAILED}
    assert gc.isenabled()


def test_hostile_requests_are_refused_and_the_others_answered(client, rows, monkeypatch):
    monkeypatch.setattr(hostile, "STALL_SECONDS", 0.0)
    found = command.load_test(
        LoadTestArguments([str(client.base_url)], [40.0], rows, seconds=1.0, hostile=1.0)
    )
    [report] = found
    assert report["status"] == {"200": report["requests"]}
    assert report["hostile"] >= len(hostile.EXPECTED) and not report["unexpected"]


@pytest.mark.parametrize("held", [3.0, 55.0, 700.0])
def test_the_search_ends_just_below_what_is_held(held):
    rate = command._highest_held(lambda rate: rate <= held, 50.0)
    assert held / command.NARROW <= rate <= held


def test_latency_without_an_answer_is_none_that_was_held(rows):
    known = command.classes_of_model("single_label_classification", 2, ("bad", "good"))
    task = command.load_task(validation_file=rows, model=known)
    sent = [Sent(0, 0.0, latency=0.01, status=200, scores={"bad": 0.0, "good": 1.0})] * 9
    lost = [Sent(0, 0.0), Sent(0, 0.1)]
    stream_met = Traffic("", OpenLoop(1.0, np.zeros(11)), [*sent, *lost], [], [])
    report = command.report_of(stream_met, task, 1.0)
    assert report["p50_ms"] == 10 and report["p95_ms"] is None
    fewer = dataclasses.replace(stream_met, sent=[*sent[:2], *[Sent(0, 0.0, status=429)] * 3])
    assert command.report_of(fewer, task, 1.0)["p50_ms"] is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"input_file": None}, "either --input_file or --data_dir"),
        ({"rate": [0.0]}, "must be above 0"),
        ({"hostile": 2.0}, "is a share"),
        ({"hold_p95_ms": 50.0, "rate": [1.0, 2.0]}, "begins at one --rate"),
        ({"hold_p95_ms": 50.0, "rate": None, "connections": [1]}, "begins at one --rate"),
        ({"rate": None}, "either --rate or --connections"),
        ({"connections": [1]}, "either --rate or --connections"),
        ({"rate": None, "connections": [0]}, "must be above 0"),
        ({"rate": None, "connections": [1], "burst_rate": 5.0}, "alternates with --rate"),
    ],
)
def test_flags_that_make_no_stream_are_refused(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        LoadTestArguments(**{"url": ["http://a"], "rate": [1.0], "input_file": "a.tsv", **changed})


def test_a_server_that_is_not_there_is_a_sentence(rows):
    for url in ("http://127.0.0.1:9", "nonsense"):
        with pytest.raises(UserError, match="name it as http://HOST:PORT"):
            command.load_test(LoadTestArguments([url], [1.0], rows))
