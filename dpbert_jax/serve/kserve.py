"""The Open Inference Protocol (KServe v2) over HTTP: its bodies, with Triton's binary tensors.

Binary tensors stand behind the JSON, one after the other; how long the JSON is says the header
Inference-Header-Content-Length, of requests and of answers.
"""

import json
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict

from dpbert_jax.config import EncoderConfig
from dpbert_jax.inference.texts import Texts
from dpbert_jax.serve.batcher import Text
from dpbert_jax.serve.errors import Empty, Invalid
from dpbert_jax.serve.protocol import Share, read_body, scores_of

OUTPUTS = ("label", "scores", "logits", "layer_mask", "cost")
DATATYPES: dict[str, str] = dict(
    zip(OUTPUTS, ("BYTES", "FP32", "FP32", "INT32", "FP32"), strict=True)
)
BINARY = {"FP32": "<f4", "INT32": "<i4"}
VERSION = "1"
HEADER = "inference-header-content-length"

Size = Annotated[int, Strict(), Field(ge=0)]


class _OfTensor(BaseModel):
    binary_data_size: Size | None = None
    binary_data: bool | None = None


class _Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[Size]
    data: list[Any] | None = None
    parameters: _OfTensor | None = None


class _Output(BaseModel):
    name: str
    parameters: _OfTensor | None = None


class _OfRequest(BaseModel):
    budget: Share | None = None
    binary_data_output: bool = False


class InferBody(BaseModel):
    """An inference request's JSON."""

    model_config = ConfigDict(title="InferRequest", extra="ignore")

    id: str | None = None
    inputs: list[_Tensor] = Field(min_length=1, max_length=2)
    outputs: list[_Output] | None = Field(None, max_length=len(OUTPUTS))
    parameters: _OfRequest | None = None


class InferRequest(NamedTuple):
    """What an inference asks; each output with whether it is to be binary."""

    request_id: str | None
    texts: Texts
    budget: float | None
    outputs: dict[str, bool]


def metadata(model: str, config: EncoderConfig) -> dict[str, Any]:
    """What `GET /v2/models/M` says."""
    sizes = {"label": [], "cost": [], "layer_mask": [config.num_hidden_layers]}
    return {
        "name": model,
        "versions": [VERSION],
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


def read_infer(body: bytes, json_length: str | None) -> InferRequest:
    """Reads an inference request.

    Inputs `text` and, where the task has pairs, `text_pair`: BYTES, in JSON or behind it.
    `parameters.budget` is the share of the dense FLOPs to spend.

    Args:
        json_length: the header; None: there is nothing but JSON.

    Raises:
        Invalid: it is none.
        Empty: there is no text.
    """
    length = len(body)
    if json_length is not None:
        digits = json_length.isascii() and json_length.isdigit() and len(json_length) < 12
        if not digits or int(json_length) > length:
            raise Invalid(f"{HEADER} must be a number of the body's {length} bytes.")
        length = int(json_length)
    request: InferBody = read_body(InferBody, body[:length])
    columns, tail = {}, body[length:]
    for tensor in request.inputs:
        if tensor.name in columns:
            raise Invalid(f"There are two inputs '{tensor.name}'.")
        columns[tensor.name], tail = _column(tensor, tail)
    if tail:
        raise Invalid(f"{len(tail)} bytes behind the last tensor belong to none.")
    if set(columns) not in ({"text"}, {"text", "text_pair"}):
        raise Invalid(f"The inputs are {sorted(columns)}, but must be text, or text and text_pair.")
    texts: Texts = columns["text"]
    if not texts:
        raise Empty("There are no texts.")
    if "text_pair" in columns:
        if len(columns["text_pair"]) != len(texts):
            raise Invalid(f"There are {len(texts)} texts and {len(columns['text_pair'])} others.")
        texts = list(zip(columns["text"], columns["text_pair"], strict=True))
    about = request.parameters or _OfRequest()
    return InferRequest(
        request.id, texts, about.budget, _wanted(request.outputs, about.binary_data_output)
    )


def _column(tensor: _Tensor, tail: bytes) -> tuple[list[str], bytes]:
    """A tensor's texts, and the bytes behind it."""
    name, size = tensor.name, (tensor.parameters or _OfTensor()).binary_data_size
    if tensor.datatype != "BYTES":
        raise Invalid(f"Input '{name}' is {tensor.datatype}, but must be BYTES.")
    if (size is None) == (tensor.data is None):
        raise Invalid(f"Input '{name}' must have either data or a binary_data_size.")
    if size is None:
        found: list[Any] = list(tensor.data or ())
        while found and all(isinstance(each, list) for each in found):  # nested, as its shape is
            found = list(chain.from_iterable(found))
    else:
        if size > len(tail):
            raise Invalid(f"Input '{name}' is said to have {size} bytes, but {len(tail)} are left.")
        found, tail = _strings(name, tail[:size]), tail[size:]
    if not tensor.shape or int(np.prod(tensor.shape, dtype=object)) != len(found):
        raise Invalid(f"Input '{name}' has {len(found)} texts, but shape {tensor.shape}.")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise Invalid(f"{name}[{i}] is no string.")
        if not text:
            raise Empty(f"{name}[{i}] is empty.")
    return found, tail


def _wanted(outputs: list[_Output] | None, binary: bool) -> dict[str, bool]:
    if not outputs:
        return dict.fromkeys(OUTPUTS, binary)
    wanted: dict[str, bool] = {}
    for output in outputs:
        if output.name not in OUTPUTS:
            raise Invalid(f"The model has no output '{output.name}', only {list(OUTPUTS)}.")
        own = (output.parameters or _OfTensor()).binary_data
        wanted[output.name] = binary if own is None else own
    return wanted


def infer_answer(
    encoder: EncoderConfig, model: str, request: InferRequest, texts: Sequence[Text]
) -> tuple[bytes, int | None]:
    """The answer, and how much of it is JSON where binary tensors follow."""
    logits = np.stack([text.logits for text in texts])
    scores = scores_of(encoder, logits)
    values: dict[str, np.ndarray] = {
        "label": np.array([encoder.label_names[i] for i in scores.argmax(axis=1)], object),
        "scores": scores,
        "logits": logits,
        "layer_mask": np.stack([text.layer_mask for text in texts]).astype(int),
        "cost": np.array([text.cost for text in texts]),
    }
    outputs, tail = [], []
    for name, binary in request.outputs.items():
        value = values[name]
        output = {"name": name, "datatype": DATATYPES[name], "shape": list(value.shape)}
        if binary:
            tail.append(_bytes(value, DATATYPES[name]))
            outputs.append({**output, "parameters": {"binary_data_size": len(tail[-1])}})
        else:
            outputs.append({**output, "data": value.ravel().tolist()})
    answer = {"model_name": model, "model_version": VERSION, "outputs": outputs}
    if request.request_id is not None:
        answer["id"] = request.request_id
    head = json.dumps(answer).encode()
    return head + b"".join(tail), len(head) if tail else None


def _bytes(value: np.ndarray, datatype: str) -> bytes:
    if datatype in BINARY:
        return value.astype(BINARY[datatype]).tobytes()
    texts = (str(text).encode() for text in value)
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _strings(name: str, data: bytes) -> list[str]:
    """Triton's BYTES: each a length of four bytes, little-endian, and so many bytes of UTF-8."""
    found, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            raise Invalid(f"Input '{name}' ends within a length.")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise Invalid(f"Input '{name}' ends within a text.")
        try:
            found.append(data[at : at + size].decode())
        except UnicodeDecodeError:
            raise Invalid(f"{name}[{len(found)}] is no UTF-8.") from None
        at += size
    return found
