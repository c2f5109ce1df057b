"""Text in, labels and plans out: a trained run as a function."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dpbert_jax.data import Batch, TokenizedSplit, batches, chunks
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_run
from dpbert_jax.inference.executors import Executor, make_executor
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.inference.path import prepare
from dpbert_jax.inference.texts import Encoder, read_texts
from dpbert_jax.policies.cost import plan_cost
from dpbert_jax.policies.rule import resolve_rule
from dpbert_jax.problem import answers, probabilities
from dpbert_jax.run_folder import read_max_seq_length


class Prediction(NamedTuple):
    """What the model says of one input."""

    label: str | tuple[str, ...] | None  # a tuple where there may be several; None: a regression
    score: float  # the label's probability, of several labels the highest; a regression's value
    layers: tuple[int, ...]  # the layers that ran
    probabilities: dict[str, float] | None  # of every class; None: a regression
    cost: float  # share of the dense FLOPs, planner included
    truncated: bool  # whether the text was cut


class Predictor:
    """Classifies texts, each with a plan of its own, layers really skipped.

    Fewer than 512 texts run one by one (`cond`), more are packed together (`packed`), to the same
    answers. Either compiles for each length bucket, on the first text or call of that length.

    It can be pickled: the other process loads the folder. It cannot be used in a forked process.
    """

    _process: ClassVar[int | None] = None  # the one in which JAX runs

    def __init__(self, model_name_or_path: str, *, dtype: DTypeLike = jnp.float32) -> None:
        self._refuse_fork()
        self._folder, self.config, params, tokenizer = load_run(model_name_or_path)
        self._dtype = jnp.dtype(dtype)
        self._encoder = Encoder(tokenizer)
        self.max_length = self._check_length(
            read_max_seq_length(self._folder) or self.config.bert.max_position_embeddings
        )
        weights = prepare(self.config, params, dtype)
        self._one = make_executor("cond", self.config, weights, dtype)
        self._many = make_executor("packed", self.config, weights, dtype)

    def __call__(
        self,
        texts: Any,
        text_pairs: Any = None,
        *,
        budget: float = 1.0,
        plan_rule: str = "threshold",
        truncation: bool = True,
        max_length: int | None = None,
    ) -> list[Prediction]:
        """Predictions in the order of the texts.

        Args:
            texts: a list, tuple, numpy array or pandas Series of strings, or of pairs of strings.
            text_pairs: second segments, one for each text, where the task has two.
            budget: share of the dense FLOPs to spend, in the trained range.
            truncation: whether longer texts are cut, as in evaluation; or else refused.
            max_length: the most tokens of an input. Default: what the run was trained with, or,
                for a model from elsewhere, its positions.

        Raises:
            UserError: something that is no text, named with its position; lists of unlike length;
                with `truncation=False`, a text that is too long; a budget out of range; an answer
                that is not finite; or a call in a forked process.
        """
        self._refuse_fork()
        rows = read_texts(texts, text_pairs)
        rule = resolve_rule(self.config, budget, plan_rule)
        longest = self.max_length if max_length is None else self._check_length(max_length)
        split, truncated = self._encoder.encode(rows, longest, truncation)
        bert = self.config.bert
        logits = np.zeros((len(split), bert.num_labels), np.float32)
        layer_mask = np.zeros((len(split), bert.num_hidden_layers), bool)
        cost = np.zeros(len(split))
        for execute, batch in self._batches(split, longest):
            output = execute(batch, rule)
            real = batch["indices"] >= 0
            numbers, mask = batch["indices"][real], np.asarray(output.layer_mask)
            logits[numbers] = np.asarray(output.logits)[real]
            layer_mask[numbers] = mask[real] > 0
            lengths = batch["attention_mask"].sum(axis=1)
            gates = mask[:, self.config.stem_layers :]
            cost[numbers] = np.asarray(plan_cost(self.config, gates, lengths))[real]
        labels, scores, shares = self._answers(logits)
        layers = [tuple(np.flatnonzero(row).tolist()) for row in layer_mask]
        columns = labels, scores, layers, shares, cost.tolist(), truncated.tolist()
        return [Prediction(*row) for row in zip(*columns, strict=True)]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), dtype=self._dtype.name), (str(self._folder.absolute()),)

    @staticmethod
    def _refuse_fork() -> None:
        """JAX's threads stay behind in a fork: whatever waits for them there waits for good."""
        if Predictor._process not in (None, os.getpid()):
            raise UserError(
                f"This is a fork (process {os.getpid()}) of process {Predictor._process}, which "
                "made a Predictor, and JAX does not work in a fork. Make the Predictor in the "
                "worker itself: gunicorn without --preload, multiprocessing with 'spawn'."
            )
        Predictor._process = os.getpid()

    def _check_length(self, length: int) -> int:
        positions = self.config.bert.max_position_embeddings
        if not 0 < length <= positions:
            raise UserError(
                f"The longest input is to have {length} tokens, but the model has positions for "
                f"1 to {positions}."
            )
        return length

    def _batches(self, split: TokenizedSplit, longest: int) -> Iterator[tuple[Executor, Batch]]:
        pad = self.config.bert.pad_token_id
        if len(split) < CHUNK_ROWS:
            for batch in batches(split, 1, longest, pad_token_id=pad):
                yield self._one, batch
        else:
            for batch in chunks(split, CHUNK_ROWS, longest, pad_token_id=pad):
                yield self._many, batch

    def _answers(self, logits: np.ndarray) -> tuple[list[Any], list[float], list[Any]]:
        """Of each row of logits [N, C]: label, score, probabilities."""
        bert = self.config.bert
        answer = answers(logits, bert.problem_type)
        if bert.is_regression:
            return [None] * len(logits), answer.tolist(), [None] * len(logits)
        names = bert.labels or tuple(f"LABEL_{i}" for i in range(bert.num_labels))
        shares = probabilities(logits, bert.problem_type)
        if bert.is_multi_label:
            labels: list[Any] = [tuple(names[i] for i in np.flatnonzero(row)) for row in answer]
        else:
            labels = [names[i] for i in answer]
        named = [dict(zip(names, row, strict=True)) for row in shares.tolist()]
        return labels, shares.max(axis=1).tolist(), named
