"""Bodies of the v2 protocol that are none: refused in the convention's form, nothing else."""

import json

import pytest

from dpbert_jax.serve import kserve
from dpbert_jax.serve.errors import Empty, Invalid


def infer(**changed):
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a film"]}
    return {"inputs": [{**tensor, **changed}]}


def of_bytes(size, shape=(1,)):
    return infer(data=None, shape=list(shape), parameters={"binary_data_size": size})


BAD = [
    ({}, "inputs"),
    ({"inputs": []}, "inputs"),
    ({"inputs": 5}, "inputs"),
    (infer(data=["\ud800"]), ""),
    ({**infer(), "id": "\ud800"}, ""),
    ({**infer(), "id": 7}, "id"),
    (infer(datatype="\ud800"), ""),
    (infer(datatype="INT32"), "must be BYTES"),
    (infer(name=1), "name"),
    (infer(name="words"), "must be text"),
    ({"inputs": infer()["inputs"] * 2}, "two inputs 'text'"),
    ({"inputs": infer()["inputs"] * 3}, "inputs"),
    (infer(shape=[2]), "but shape"),
    (infer(shape=[]), "but shape"),
    (infer(shape=[-1]), "shape"),
    (infer(shape=[1e999]), "shape"),
    (infer(shape=[10**400]), "shape"),
    (infer(data=[5]), "is no string"),
    (infer(data=[["a"], "b"], shape=[2]), "is no string"),
    (infer(data=None), "either data or"),
    ({**infer(), "outputs": [{"name": ["x"]}]}, "outputs"),
    ({**infer(), "outputs": [{"name": "depth"}]}, "no output 'depth'"),
    ({**infer(), "outputs": [{"name": "layer_mask"}] * 6}, "outputs"),
    ({**infer(), "parameters": {"budget": True}}, "budget"),
    ({**infer(), "parameters": {"budget": 1e999}}, "budget"),
]


@pytest.mark.parametrize(("body", "sentence"), BAD, ids=range(len(BAD)))
def test_what_is_no_request_is_refused(client, body, sentence):
    answer = client.post("/v2/models/tiny/infer", content=json.dumps(body))
    assert (answer.status_code, answer.json()["error_type"]) == (422, "Validation")
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", "1000", "x"])
def test_a_length_that_is_none_is_refused(client, length):
    headers = {kserve.HEADER: length.encode("latin-1")}
    answer = client.post("/v2/models/tiny/infer", content=json.dumps(infer()), headers=headers)
    assert answer.status_code == 422 and kserve.HEADER in answer.json()["error"]


@pytest.mark.parametrize(
    ("size", "tail", "sentence"),
    [
        (1000, b"\1\0\0\0a", "are left"),
        (5, b"\1\0\0\0ab", "belong to none"),
        (3, b"\1\0\0", "within a length"),
        (5, b"\2\0\0\0a", "within a text"),
        (5, b"\1\0\0\0\xff", "no UTF-8"),
        (10, b"\1\0\0\0a\1\0\0\0b", "but shape"),
    ],
)
def test_binary_tensors_are_as_long_as_they_are_said_to_be(size, tail, sentence):
    head = json.dumps(of_bytes(size)).encode()
    with pytest.raises(Invalid, match=sentence):
        kserve.read_infer(head + tail, str(len(head)))


def test_no_texts_and_an_empty_one_are_empty():
    for given in (infer(data=[], shape=[0]), infer(data=[""])):
        with pytest.raises(Empty):
            kserve.read_infer(json.dumps(given).encode(), None)


def test_nested_data_and_two_columns_are_read():
    given = infer(data=[["a"], ["b"]], shape=[2, 1])["inputs"]
    given += infer(name="text_pair", data=["c", "d"], shape=[2])["inputs"]
    wanted = {"outputs": [{"name": "cost"}, {"name": "cost"}], "id": "7"}
    found = kserve.read_infer(json.dumps({"inputs": given, **wanted}).encode(), None)
    assert found.texts == [("a", "c"), ("b", "d")] and found.request_id == "7"
    assert found.outputs == {"cost": False} and found.budget is None


def test_parameters_may_be_null():
    given = {**infer(parameters=None), "parameters": None, "outputs": None}
    found = kserve.read_infer(json.dumps(given).encode(), None)
    assert found.texts == ["a film"] and found.outputs == dict.fromkeys(kserve.OUTPUTS, False)
    given["outputs"] = [{"name": "cost", "parameters": None}]
    assert kserve.read_infer(json.dumps(given).encode(), None).outputs == {"cost": False}
