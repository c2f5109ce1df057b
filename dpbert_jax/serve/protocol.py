"""The bodies that clients send, and the forms of the answers.

`/predict` is text-embeddings-inference's, `/v1/classify` vLLM's; KServe's is in `kserve`.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from dpbert_jax.config import EncoderConfig
from dpbert_jax.inference.texts import Texts
from dpbert_jax.problem import probabilities
from dpbert_jax.serve.batcher import Text
from dpbert_jax.serve.errors import Empty, Invalid, TooLarge

Sentence = Annotated[str, Strict()]
Share = Annotated[float, Strict(), Field(gt=0, le=1)]


class PredictBody(BaseModel):
    """A text, a pair of texts, or a list of either."""

    model_config = ConfigDict(title="PredictRequest", extra="ignore")

    inputs: Sentence | list[Sentence] | list[list[Sentence]] = Field(
        description="A text; [a, b]: a pair of texts; [[a], [b], ...] or [[a, b], ...]: several.",
        examples=["A film.", ["A plane lands.", "A plane takes off."], [["A film."], ["Films."]]],
    )
    truncate: bool | None = Field(
        False, description="Whether a longer text is cut, or else refused."
    )
    truncation_direction: Literal["Right", "Left", "right", "left"] = "Right"
    raw_scores: bool = Field(False, description="Logits in place of probabilities.")
    budget: Share | None = Field(
        None, description="Share of the dense FLOPs to spend. Default: as the server's load allows."
    )
    details: bool = Field(False, description="Layers, cost and times beside each text's labels.")
    parameters: dict[str, Any] | None = Field(
        None, description="Of the Hugging Face hub's client: its answer is a list for each text."
    )


class ClassifyBody(BaseModel):
    """vLLM's classification."""

    model_config = ConfigDict(title="ClassifyRequest", extra="ignore")

    model: str | None = None
    input: Sentence | list[Sentence]
    budget: Share | None = None


def read_body(kind: type[BaseModel], body: bytes) -> Any:
    """The body as the protocol has it.

    Raises:
        Invalid: it is no JSON, or other JSON; says where.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"{where}: {first['msg']}" if where else first["msg"]) from None


def texts_of(inputs: str | list[str] | list[list[str]]) -> tuple[Texts, bool]:
    """The texts or pairs of a `/predict`, and whether they are a single one.

    Raises:
        Empty: there are none, or one is empty.
        Invalid: a list that is neither a text nor a pair, or texts beside pairs.
    """
    single = isinstance(inputs, str) or (bool(inputs) and isinstance(inputs[0], str))
    rows: Any = [[inputs]] if isinstance(inputs, str) else [inputs] if single else inputs
    if not rows:
        raise Empty("`inputs` is empty.")
    for i, row in enumerate(rows):
        if len(row) not in (1, 2):
            raise Invalid(f"inputs[{i}] has {len(row)} texts, but must be a text or a pair.")
        if len(row) != len(rows[0]):
            raise Invalid(f"inputs[{i}] has {len(row)} text(s), but inputs[0] has {len(rows[0])}.")
        if not all(row):
            raise Empty(f"inputs[{i}] is empty.")
    if len(rows[0]) == 1:
        return [row[0] for row in rows], single
    return [(row[0], row[1]) for row in rows], single


def check_count(number: int, most: int) -> None:
    """Refuses more texts than a request may have."""
    if number > most:
        raise TooLarge(f"There are {number} texts, but a request may have {most}: send several.")


def check_words(texts: Texts, longest: int) -> None:
    """Refuses a text with more words than the model takes tokens, before it is tokenised.

    A word with a letter or a digit is one token at least. Tokenising a megabyte to its end would
    hold up all the others.
    """
    for i, row in enumerate(texts):
        for text in (row,) if isinstance(row, str) else row:
            words = text.split(maxsplit=longest)
            if sum(any(map(str.isalnum, word)) for word in words) > longest:
                raise TooLarge(
                    f"inputs[{i}] has more than {longest} words, but the model takes {longest} "
                    "tokens: shorten it, or ask with `truncate`."
                )


def scores_of(encoder: EncoderConfig, logits: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, [N, C]; a regression's values as they are."""
    return logits if encoder.is_regression else probabilities(logits, encoder.problem_type)


def labels_of(encoder: EncoderConfig, logits: np.ndarray, raw: bool) -> list[dict[str, Any]]:
    """Every class with its score, best first; a regression's value under its one name."""
    scores = logits if raw else scores_of(encoder, logits[None])[0]
    named = zip(scores.tolist(), encoder.label_names, strict=True)
    return [{"score": s, "label": label} for s, label in sorted(named, key=lambda pair: -pair[0])]


def predict_answer(
    encoder: EncoderConfig, texts: Sequence[Text], body: PredictBody, single: bool
) -> list[Any]:
    """What `/predict` answers: labels of the text, or of each."""
    every: list[Any] = []
    for text in texts:
        labels: Any = labels_of(encoder, text.logits, body.raw_scores)
        every.append({"labels": labels, **details_of(text)} if body.details else labels)
    return every[0] if single and body.parameters is None else every


def details_of(text: Text) -> dict[str, Any]:
    """What ran for a text, and what it took."""
    return {
        "layers": np.flatnonzero(text.layer_mask).tolist(),
        "cost": round(text.cost, 4),
        "budget": text.budget,
        "queue_ms": round(1000 * text.queued, 3),
        "inference_ms": round(1000 * text.seconds, 3),
    }


def headers_of(texts: Sequence[Text]) -> dict[str, str]:
    """The same of all texts in headers, for clients that read the labels only."""
    layers = (",".join(map(str, np.flatnonzero(text.layer_mask))) for text in texts)
    return {
        "x-dpbert-layers": ";".join(layers),
        "x-dpbert-cost": ";".join(f"{text.cost:.4f}" for text in texts),
        "x-dpbert-budget": ";".join(f"{text.budget:g}" for text in texts),
        "x-dpbert-queue-ms": f"{1000 * max(text.queued for text in texts):.3f}",
        "x-dpbert-inference-ms": f"{1000 * max(text.seconds for text in texts):.3f}",
    }


def classify_answer(
    encoder: EncoderConfig, model: str, texts: Sequence[Text], tokens: int
) -> dict[str, Any]:
    """What `/v1/classify` answers."""
    data = []
    for index, text in enumerate(texts):
        scores = scores_of(encoder, text.logits[None])[0]
        data.append(
            {
                "index": index,
                "label": encoder.label_names[int(scores.argmax())],
                "probs": scores.tolist(),
                "num_classes": len(scores),
            }
        )
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
