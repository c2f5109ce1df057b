"""Text in, labels and plans out: a trained run as a function."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from scipy.special import softmax

from dpbert_jax.data import bucket_length
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_run
from dpbert_jax.inference.executors import make_executor
from dpbert_jax.policies.rule import resolve_rule


class Prediction(NamedTuple):
    """What the model says of one input."""

    label: str | None  # None where the model is a regression
    score: float  # the label's probability, or the regression's value
    layers: tuple[int, ...]  # the layers that ran


class Predictor:
    """Classifies texts one by one, each with a plan of its own, layers really skipped.

    One program is compiled for each length bucket, on the first text of that length.
    """

    def __init__(self, model_name_or_path: str, *, dtype: DTypeLike = jnp.float32) -> None:
        _, self.config, params, self._tokenizer = load_run(model_name_or_path)
        self._execute = make_executor("cond", self.config, params, dtype)

    def __call__(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        *,
        budget: float = 1.0,
        plan_rule: str = "threshold",
    ) -> list[Prediction]:
        """Predictions in the order of the texts.

        Args:
            text_pairs: second segments, one for each text, where the task has two.
            budget: share of the dense FLOPs to spend, in the trained range.

        Raises:
            UserError: a string instead of a list, lists of unlike length, a text with more tokens
                than the model has positions, or a budget out of range.
        """
        if isinstance(texts, str) or isinstance(text_pairs, str):
            raise UserError("Give a list of texts, not a single string.")
        if text_pairs is not None and len(text_pairs) != len(texts):
            raise UserError(f"There are {len(texts)} texts, but {len(text_pairs)} second segments.")
        rule = resolve_rule(self.config, budget, plan_rule)
        pairs = [None] * len(texts) if text_pairs is None else text_pairs
        made = []
        for number, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
            batch = self._tokenize(text, pair, number)
            output = self._execute(batch, rule)
            logits = np.asarray(output.logits)[0]
            layers = tuple(int(i) for i in np.flatnonzero(np.asarray(output.layer_mask)[0]))
            made.append(self._prediction(logits, layers))
        return made

    def _tokenize(self, text: str, pair: str | None, number: int) -> dict[str, np.ndarray]:
        bert = self.config.bert
        found = self._tokenizer(text, pair, verbose=False)
        length = len(found["input_ids"])
        if length > bert.max_position_embeddings:
            raise UserError(
                f"Text {number} has {length} tokens, but the model has positions for "
                f"{bert.max_position_embeddings}: shorten it."
            )
        width = bucket_length(length, bert.max_position_embeddings)

        def padded(values: list[int], fill: int) -> np.ndarray:
            return np.array([values + [fill] * (width - length)], np.int32)

        return {
            "input_ids": padded(found["input_ids"], bert.pad_token_id),
            "attention_mask": padded([1] * length, 0),
            "token_type_ids": padded(found["token_type_ids"], 0),
        }

    def _prediction(self, logits: np.ndarray, layers: tuple[int, ...]) -> Prediction:
        bert = self.config.bert
        if bert.is_regression:
            return Prediction(None, float(logits[0]), layers)
        best = int(logits.argmax())
        names = bert.labels or tuple(f"LABEL_{i}" for i in range(bert.num_labels))
        return Prediction(names[best], float(softmax(logits)[best]), layers)
