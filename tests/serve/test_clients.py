"""Clients that others wrote."""

import numpy as np
import pytest

from dpbert_jax.model import Model

TEXTS = ["the film was good", "a dog", "bad bad bad cat on the mat"]


@pytest.fixture(scope="module")
def wanted(served_folder):
    return Model.from_pretrained(served_folder).predict(TEXTS, budget=0.6)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tritonclient(client, wanted, binary):
    triton = pytest.importorskip("tritonclient.http")
    url = f"{client.base_url.host}:{client.base_url.port}"
    with triton.InferenceServerClient(url) as asked:
        assert asked.is_server_live() and asked.is_server_ready() and asked.is_model_ready("tiny")
        assert [each["name"] for each in asked.get_model_metadata("tiny")["inputs"]] == [
            "text",
            "text_pair",
        ]
        tensor = triton.InferInput("text", [3], "BYTES")
        tensor.set_data_from_numpy(np.array(TEXTS, object), binary_data=binary)
        answer = asked.infer("tiny", [tensor], parameters={"budget": 0.6}, request_id="7")
        assert answer.get_response()["id"] == "7"
        labels = [each.decode() for each in answer.as_numpy("label")]  # in binary, as Triton's
        assert labels == [each.label for each in wanted]
        layers = [tuple(np.flatnonzero(row)) for row in answer.as_numpy("layer_mask")]
        assert layers == [each.layers for each in wanted]
        scores = [list(each.probabilities.values()) for each in wanted]
        np.testing.assert_allclose(answer.as_numpy("scores"), scores, atol=1e-5)
        with pytest.raises(triton.InferenceServerException, match="no output 'depth'"):
            asked.infer("tiny", [tensor], outputs=[triton.InferRequestedOutput("depth")])


def test_hugging_face_s_client(client, monkeypatch):
    from huggingface_hub import InferenceClient, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # this server is no hub
    asked = InferenceClient(model=f"{client.base_url}/predict")
    answer = asked.text_classification("the film was good")
    plain = client.post("/predict", json={"inputs": "the film was good"}).json()
    assert [(each.label, each.score) for each in answer] == [
        (each["label"], each["score"]) for each in plain
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tritonclient_chooses_which_outputs_are_binary(client, wanted):
    triton = pytest.importorskip("tritonclient.http")
    url = f"{client.base_url.host}:{client.base_url.port}"
    with triton.InferenceServerClient(url) as asked:
        assert asked.is_model_ready("tiny", "1") and not asked.is_model_ready("tiny", "2")
        tensor = triton.InferInput("text", [3], "BYTES")
        tensor.set_data_from_numpy(np.array(TEXTS, object))
        outputs = [
            triton.InferRequestedOutput(name, binary_data=name != "label")
            for name in ("label", "scores")
        ]
        given = {"outputs": outputs, "parameters": {"budget": 0.6}, "model_version": "1"}
        answer = asked.infer("tiny", [tensor], **given)
        assert answer.as_numpy("label").tolist() == [each.label for each in wanted]
        scores = [list(each.probabilities.values()) for each in wanted]
        np.testing.assert_allclose(answer.as_numpy("scores"), scores, atol=1e-5)
        assert answer.as_numpy("cost") is None
