"""The Open Inference Protocol (KServe v2) over HTTP: its bodies, with Triton's binary tensors."""

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpbert_jax.config import EncoderConfig
from dpbert_jax.inference.texts import Texts
from dpbert_jax.serve.batcher import Text
from dpbert_jax.serve.errors import Empty, Invalid
from dpbert_jax.serve.protocol import scores_of

OUTPUTS = ("label", "scores", "logits", "layer_mask", "cost")
DATATYPES: dict[str, str] = dict(
    zip(OUTPUTS, ("BYTES", "FP32", "FP32", "INT32", "FP32"), strict=True)
)


class InferRequest(NamedTuple):
    """What an inference asks."""

    request_id: str | None
    texts: Texts
    budget: float | None
    outputs: tuple[str, ...]


def metadata(model: str, config: EncoderConfig) -> dict[str, Any]:
    """What `GET /v2/models/M` says."""
    sizes = {"label": [], "cost": [], "layer_mask": [config.num_hidden_layers]}
    return {
        "name": model,
        "versions": ["1"],
        "platform": "dpbert_jax",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
            {"name": "text_pair", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {
                "name": name,
                "datatype": DATATYPES[name],
                "shape": [-1, *sizes.get(name, [config.num_labels])],
            }
            for name in OUTPUTS
        ],
    }


def read_infer(body: bytes, json_length: int | None) -> InferRequest:
    """Reads an inference request.

    Inputs `text` and, where the task has pairs, `text_pair`: BYTES, in JSON or behind it
    (`json_length` is the header Inference-Header-Content-Length). `parameters.budget` is the share
    of the dense FLOPs to spend.

    Raises:
        Invalid: it is none.
        Empty: there is no text.
    """
    try:
        request = json.loads(body if json_length is None else body[:json_length])
        inputs = {each["name"]: each for each in request["inputs"]}
        tail = b"" if json_length is None else body[json_length:]
        columns = {}
        for name, tensor in inputs.items():
            size = (tensor.get("parameters") or {}).get("binary_data_size")
            if size is None:
                columns[name] = tensor["data"]
            else:
                columns[name], tail = _strings(tail[:size]), tail[size:]
            columns[name] = list(np.asarray(columns[name], object).ravel())
            if tensor["datatype"] != "BYTES":
                raise Invalid(f"Input '{name}' is {tensor['datatype']}, but must be BYTES.")
            if int(np.prod(tensor["shape"])) != len(columns[name]):
                raise Invalid(
                    f"Input '{name}' has {len(columns[name])} texts, but shape {tensor['shape']}."
                )
        wanted = tuple(each["name"] for each in request.get("outputs") or ()) or OUTPUTS
        budget = (request.get("parameters") or {}).get("budget")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Invalid(f"This is no request of the v2 protocol: {error}.") from None
    unknown = sorted(set(inputs) - {"text", "text_pair"})
    if unknown or "text" not in inputs:
        raise Invalid(f"The inputs are {sorted(inputs)}, but must be text, or text and text_pair.")
    unknown = sorted(set(wanted) - set(OUTPUTS))
    if unknown:
        raise Invalid(f"The model has no output '{unknown[0]}', only {list(OUTPUTS)}.")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float)):
        raise Invalid("parameters.budget must be a number.")
    for name, column in columns.items():
        for i, text in enumerate(column):
            if not isinstance(text, str):
                raise Invalid(f"{name}[{i}] is no string.")
            if not text:
                raise Empty(f"{name}[{i}] is empty.")
    if not columns["text"]:
        raise Empty("There are no texts.")
    texts: Texts = columns["text"]
    if "text_pair" in columns:
        if len(columns["text_pair"]) != len(texts):
            raise Invalid(f"There are {len(texts)} texts and {len(columns['text_pair'])} others.")
        texts = list(zip(columns["text"], columns["text_pair"], strict=True))
    return InferRequest(request.get("id"), texts, budget, wanted)


def infer_answer(
    encoder: EncoderConfig, model: str, request: InferRequest, texts: Sequence[Text]
) -> dict[str, Any]:
    """The answer, its tensors in JSON."""
    logits = np.stack([text.logits for text in texts])
    scores = scores_of(encoder, logits)
    values: dict[str, np.ndarray] = {
        "label": np.array([encoder.label_names[i] for i in scores.argmax(axis=1)], object),
        "scores": scores,
        "logits": logits,
        "layer_mask": np.stack([text.layer_mask for text in texts]).astype(int),
        "cost": np.array([text.cost for text in texts]),
    }
    outputs = [
        {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": list(values[name].shape),
            "data": values[name].ravel().tolist(),
        }
        for name in request.outputs
    ]
    answer = {"model_name": model, "model_version": "1", "outputs": outputs}
    return answer if request.request_id is None else {**answer, "id": request.request_id}


def _strings(data: bytes) -> list[str]:
    """Triton's BYTES: each a length of four bytes, little-endian, and so many bytes of UTF-8."""
    found, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError("a binary tensor ends within a length")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise ValueError("a binary tensor ends within a text")
        found.append(data[at : at + size].decode())
        at += size
    return found
