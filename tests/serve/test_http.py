"""The server over real HTTP: answers, forms, limits, and what must not harm it."""

import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dpbert_jax.model import Model
from dpbert_jax.serve import lanes, protocol
from dpbert_jax.serve.errors import TooLarge
from dpbert_jax.serve.protocol import check_words


@pytest.fixture(scope="module")
def model(served_folder):
    return Model.from_pretrained(served_folder)


def labels(prediction):
    pairs = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
    return [{"label": label, "score": pytest.approx(score, abs=1e-5)} for label, score in pairs]


TEXTS = ["the film was good", "a dog", "bad bad bad cat on the mat"]


def test_one_text_is_answered_as_the_library_answers_it(client, model):
    for budget in (0.5, 0.8, 1.0):
        answer = client.post("/predict", json={"inputs": TEXTS[0], "budget": budget})
        [wanted] = model.predict([TEXTS[0]], budget=budget)
        assert answer.status_code == 200 and answer.json() == labels(wanted)
        assert answer.headers["x-dpbert-layers"] == ",".join(map(str, wanted.layers))
        assert float(answer.headers["x-dpbert-cost"]) == pytest.approx(wanted.cost, abs=1e-3)


def test_several_texts_and_pairs(client, model):
    answer = client.post("/predict", json={"inputs": [[text] for text in TEXTS], "budget": 0.6})
    assert answer.json() == [labels(each) for each in model.predict(TEXTS, budget=0.6)]
    pairs = [["the film", "was good"], ["a dog", "ran"]]
    answer = client.post("/predict", json={"inputs": pairs, "details": True, "budget": 0.6})
    for got, wanted in zip(answer.json(), model.predict(pairs, budget=0.6), strict=True):
        assert got["labels"] == labels(wanted) and got["layers"] == list(wanted.layers)
        assert got["budget"] == 0.6 and got["queue_ms"] >= 0
    single = client.post("/predict", json={"inputs": pairs[0], "budget": 0.6}).json()
    assert single == labels(model.predict(pairs[:1], budget=0.6)[0])


def test_raw_scores_are_logits(client):
    both = [
        client.post("/predict", json={"inputs": "a dog", "raw_scores": raw}).json()
        for raw in (True, False)
    ]
    logits, shares = ({each["label"]: each["score"] for each in answer} for answer in both)
    odds = logits["good"] - logits["bad"]
    assert shares["good"] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-5)


def test_a_long_text_is_refused_or_cut_at_the_end_asked(client, model):
    text = "a good film " * 40
    assert client.post("/predict", json={"inputs": text}).status_code == 413
    [wanted] = model.predict([text])
    answer = client.post("/predict", json={"inputs": text, "truncate": True})
    assert answer.json() == labels(wanted)
    cut = [
        client.post(
            "/predict",
            json={"inputs": "dog " + text + "cat", "truncate": True, "truncation_direction": end},
        ).json()
        for end in ("Left", "Right")
    ]
    assert cut[0] != cut[1]


def test_classify(client, model):
    body = {"model": "tiny", "input": TEXTS, "budget": 0.7}
    answer = client.post("/v1/classify", json=body).json()
    assert answer["object"] == "list" and answer["model"] == "tiny"
    for index, (got, wanted) in enumerate(
        zip(answer["data"], model.predict(TEXTS, budget=0.7), strict=True)
    ):
        assert (got["index"], got["label"], got["num_classes"]) == (index, wanted.label, 2)
        assert got["probs"] == pytest.approx(list(wanted.probabilities.values()), abs=1e-5)
    tokens = answer["usage"]["prompt_tokens"]
    assert tokens == answer["usage"]["total_tokens"] == sum(len(t.split()) + 2 for t in TEXTS)


def test_health_info_status_and_metrics(client):
    assert client.get("/health").status_code == 200
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").status_code == 200
    info = client.get("/info").json()
    assert info["model_id"] == "tiny" and info["budget_range"] == [0.4, 1.0]
    assert info["model_type"]["classifier"]["id2label"] == {"0": "bad", "1": "good"}
    assert client.get("/status").json()["budget"] == 1.0
    client.post("/predict", json={"inputs": "a secret dog"})
    metrics = client.get("/metrics").text
    for name in ("requests_total", "queue_time_seconds", "batch_size", "layers", "budget"):
        assert f"dpbert_{name}" in metrics
    assert 'route="/predict",status="200"' in metrics and "secret" not in metrics
    assert "/predict" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 200


BAD = [
    (b"", 422, "Validation"),
    (b"{", 422, "Validation"),
    (b'{"inputs": "\xff\xfe"}', 422, "Validation"),
    (b'{"inputs": "\\ud800"}', 422, "Validation"),
    (b"[" * 100_000, 422, "Validation"),
    (b'"inputs"', 422, "Validation"),
    (b"{}", 422, "Validation"),
    (b'{"inputs": 5}', 422, "Validation"),
    (b'{"inputs": null}', 422, "Validation"),
    (b'{"inputs": [1, 2]}', 422, "Validation"),
    (b'{"inputs": ["a", "b", "c"]}', 422, "Validation"),
    (b'{"inputs": [["a"], ["a", "b"]]}', 422, "Validation"),
    (b'{"inputs": {"a": "b"}}', 422, "Validation"),
    (b'{"inputs": "a", "budget": 0}', 422, "Validation"),
    (b'{"inputs": "a", "budget": 0.1}', 422, "Validation"),
    (b'{"inputs": "a", "budget": 1e999}', 422, "Validation"),
    (b'{"inputs": "a", "budget": "much"}', 422, "Validation"),
    (b'{"inputs": "a", "truncation_direction": "up"}', 422, "Validation"),
    (b'{"inputs": ""}', 400, "Empty"),
    (b'{"inputs": []}', 400, "Empty"),
    (b'{"inputs": [["a"], [""]]}', 400, "Empty"),
    (b'{"inputs": [[]]}', 422, "Validation"),
    (json.dumps({"inputs": [["a"]] * 33}).encode(), 413, "Validation"),
    (b'{"inputs": "' + b"a" * 10_000_000 + b'"}', 413, "Validation"),
]


@pytest.mark.parametrize(("body", "status", "kind"), BAD, ids=range(len(BAD)))
def test_what_is_refused_is_refused_in_the_convention_s_form(client, body, status, kind):
    answer = client.post("/predict", content=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert answer.json()["error"]
    assert client.post("/predict", json={"inputs": "a"}).status_code == 200


@pytest.mark.parametrize("path", ["/nothing", "/v2/models/other", "/v2/models/other/ready"])
def test_an_unknown_path_is_an_error_in_that_form_too(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and set(answer.json()) == {"error", "error_type"}
    assert client.get("/predict").status_code == 405


def received_until(connection, wanted):
    """What comes until there are these bytes; '' where the connection is closed before."""
    found = b""
    while wanted not in found:
        part = connection.recv(10_000)
        if not part:
            return ""
        found += part
    return found.decode()


def read_to_the_end(connection):
    """Until the server closes or resets it; TimeoutError where it stays open."""
    connection.settimeout(60)
    with contextlib.suppress(ConnectionError):
        while connection.recv(10_000):
            pass


def test_connections_that_say_nothing_or_half_of_it_do_no_harm(client, serving, served_folder):
    with serving(served_folder, body_timeout_ms=50.0) as short:
        url = short.base_url
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        for said in (b"", b"POST /pre", head, head + b'{"inputs"'):
            with socket.create_connection((url.host, url.port)) as half:
                half.sendall(said)
                answer = received_until(half, b"Timeout")
                assert " 408 " in answer.split("\r\n")[0]
        with socket.create_connection((url.host, url.port)) as used:
            used.sendall(head.replace(b"100", b"2") + b"{}")
            assert received_until(used, b" 422 ")
            used.sendall(b"POST /pre")
            assert received_until(used, b" 408 ")
        assert short.post("/predict", json={"inputs": "a"}).status_code == 200


GOOD = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def test_bytes_that_begin_no_request_keep_no_connection(serving, served_folder):
    with serving(served_folder, body_timeout_ms=50.0) as short:
        address = (short.base_url.host, short.base_url.port)
        for before in (b"", GOOD):
            with socket.create_connection(address) as idle:
                idle.sendall(before)
                if before:
                    assert received_until(idle, b"{}")
                idle.sendall(b"\r\n")
                assert received_until(idle, b" 408 ")
        # A body that was refused may come for as long, and then no more.
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        with socket.create_connection(address) as slow:
            slow.sendall(head)
            assert received_until(slow, b"Timeout")
            with contextlib.suppress(ConnectionError):  # it may be closed by now
                slow.sendall(b"1\r\n")
            read_to_the_end(slow)


def test_an_answer_comes_before_the_next_request_is_late(serving, served_folder):
    with (
        serving(served_folder, body_timeout_ms=50.0) as short,
        socket.create_connection((short.base_url.host, short.base_url.port)) as both,
    ):
        both.sendall(GOOD + b"GET /b HT")
        answers = received_until(both, b" 408 ")
        assert answers.startswith("HTTP/1.1 200 ") and "Timeout" in answers


def test_headers_have_an_end(client):
    address = (client.base_url.host, client.base_url.port)
    for head in (b"X: " + b"a" * 10_000_000, b"X: b\r\n" * 100_000):
        with socket.create_connection(address) as endless:
            with contextlib.suppress(ConnectionError):  # it is closed while this is sent
                endless.sendall(b"GET /health HTTP/1.1\r\n" + head)
            with contextlib.suppress(ConnectionError):
                assert " 431 " in received_until(endless, b"Validation")
    with socket.create_connection(address) as other:
        other.sendall(b"no HTTP\r\n\r\n")
        assert '"error_type": "Validation"' in received_until(other, b"}")
    assert client.get("/health").status_code == 200


def test_a_mistake_of_the_server_is_an_error_in_that_form_too(serving, served_folder, monkeypatch):
    def broken(*about):
        raise ZeroDivisionError

    monkeypatch.setattr(protocol, "predict_answer", broken)
    with serving(served_folder) as failing:
        answer = failing.post("/predict", json={"inputs": "a"})
        assert answer.status_code == 500 and answer.json()["error_type"] == "Backend"
        assert 'route="/predict",status="500"} 1.0' in failing.get("/metrics").text
        assert failing.get("/health").status_code == 200


def test_a_text_of_too_many_words_is_refused_before_it_is_tokenised(client, monkeypatch):
    def refused(*about):
        raise AssertionError("it was tokenised")

    for lane in (client.service._tokenizing._short, client.service._tokenizing._long):
        monkeypatch.setattr(lane._encoder, "encode", refused)
    for inputs in ("word " * 33, ["a", "word " * 100_000], [["a"], ["b " * 40]]):
        answer = client.post("/predict", json={"inputs": inputs})
        assert answer.status_code == 413 and "words" in answer.json()["error"]


@pytest.mark.parametrize("long", ["word " * 3_000, "!" * 10_001])
def test_a_text_that_is_long_to_tokenise_holds_up_no_short_one(client, long, monkeypatch):
    encoder = client.service._tokenizing._long._encoder
    encode, begun, may_end = encoder.encode, threading.Event(), threading.Event()

    def held_up(*about):
        begun.set()
        assert may_end.wait(60)
        return encode(*about)

    monkeypatch.setattr(encoder, "encode", held_up)
    with ThreadPoolExecutor(1) as beside:
        body = {"inputs": long, "truncate": True}
        answer = beside.submit(client.post, "/predict", json=body)
        try:
            assert begun.wait(60)
            assert client.post("/predict", json={"inputs": "a word"}).status_code == 200
            assert not answer.done()
        finally:
            may_end.set()
        assert answer.result().status_code == 200


def test_few_long_texts_wait_for_each_other_and_none_for_long(
    serving, served_folder, client, monkeypatch
):
    monkeypatch.setattr(lanes, "MOST_LONG", 0)
    body = {"inputs": "word " * 3_000, "truncate": True}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 429 and "long requests are waiting" in answer.json()["error"]
    monkeypatch.setattr(lanes, "MOST_LONG", 1)
    with serving(served_folder, max_queue_ms=1.0) as hasty:
        may_end = threading.Event()
        lane = hasty.service._tokenizing._long
        encode = lane._encoder.encode
        monkeypatch.setattr(lane._encoder, "encode", lambda *a: may_end.wait(60) and encode(*a))
        answer = hasty.post("/predict", json=body)
        may_end.set()
        assert answer.status_code == 429 and "not tokenised within" in answer.json()["error"]
        assert lane.waiting == 0


def test_punctuation_counts_for_no_words():
    check_words(["- " * 50 + "a " * 32, ("b " * 32, "c")], 32)
    with pytest.raises(TooLarge, match="more than 32 words"):
        check_words(["a", "a " * 33], 32)


def test_a_key_is_asked_for(serving, served_folder):
    with serving(served_folder, api_key="opens") as locked:
        body = {"inputs": "a"}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "opens"}):
            answer = locked.post("/predict", json=body, headers=headers)
            assert answer.status_code == 401 and "authenticate" in str(answer.headers)
            assert locked.get("/info", headers=headers).status_code == 401
        headers = {"authorization": "Bearer opens"}
        assert locked.post("/predict", json=body, headers=headers).status_code == 200
        assert locked.get("/health").status_code == 200
