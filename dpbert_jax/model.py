"""The model: what is loaded, asked and saved."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.data import (
    LENGTH_BUCKETS,
    Batch,
    TokenizedSplit,
    batches,
    bucket_length,
    chunks,
)
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.export_formats import export_format
from dpbert_jax.flags import unused_folder
from dpbert_jax.hub import load_run, save_folder
from dpbert_jax.hub.upload import upload_folder
from dpbert_jax.inference.executors import Executor, make_executor
from dpbert_jax.inference.packed import CHUNK_ROWS
from dpbert_jax.inference.path import Weights, prepare
from dpbert_jax.inference.texts import Encoder, read_texts
from dpbert_jax.integrity import update_sums, write_whole
from dpbert_jax.policies.rule import resolve_rule
from dpbert_jax.policies.tokens import own_policy
from dpbert_jax.problem import answers, probabilities
from dpbert_jax.programs import keep_programs
from dpbert_jax.run_folder import EXPORT_CONFIG, read_max_seq_length


class Prediction(NamedTuple):
    """What the model says of one input."""

    label: str | tuple[str, ...] | None  # a tuple where there may be several; None: a regression
    score: float  # the label's probability, of several labels the highest; a regression's value
    layers: tuple[int, ...]  # the layers that ran
    probabilities: dict[str, float] | None  # of every class; None: a regression
    cost: float  # share of the dense FLOPs, planner included
    truncated: bool  # whether the text was cut


@dataclass(frozen=True, eq=False)
class Model:
    """A fine-tuned encoder, the policy that decides on its layers, and its tokenizer: one value.

    It can be pickled: the other process loads the folder. It cannot be used in a forked process.

    >>> model = Model.from_pretrained("runs/sst2")
    >>> each, other = model.predict(["a film.", "film."], budget=0.6)
    >>> each.label in model.config.encoder.label_names, 0 < each.cost < 1.5
    (True, True)
    """

    config: DPBertConfig
    params: Params
    tokenizer: Any
    max_seq_length: int  # tokens that a longer input is cut to
    folder: Path | None = None  # where it was loaded from
    dtype: DTypeLike = jnp.float32  # that executors compute in

    _process: ClassVar[int | None] = None  # the one in which JAX runs

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: str | Path, *, dtype: DTypeLike = jnp.float32
    ) -> "Model":
        """Loads a run's folder, any Hugging Face folder of a fine-tuned classifier, or a hub id.

        Raises:
            UserError: it is none of these, or its files do not fit together or have been changed.
        """
        _refuse_fork()
        keep_programs()
        folder, config, params, tokenizer = load_run(str(model_name_or_path))
        longest = read_max_seq_length(folder) or config.encoder.longest_input
        model = cls(config, params, tokenizer, longest, folder, dtype)
        model._check_length(longest)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `from_pretrained` and Hugging Face's own classes load.

        Raises:
            UserError: the folder cannot be written, or holds other things.
        """
        place = unused_folder(str(folder), "save_pretrained:")
        try:
            save_folder(place, self.config, self.params, self.tokenizer)
            text = json.dumps({"max_seq_length": self.max_seq_length})
            write_whole(place / EXPORT_CONFIG, text + "\n")
            update_sums(place, [EXPORT_CONFIG])
        except OSError as error:
            raise UserError(f"{place} cannot be written: {error.strerror}.") from error

    def export(
        self,
        format: str,
        folder: str | Path,
        *,
        plan_rule: str = "threshold",
        int8: bool = False,
        int8_all: bool = False,
        standard_operators: bool = False,
        default_budget: float | None = None,
    ) -> None:
        """Writes the model for another runtime, as `dpbert export` does: a new folder, whole.

        Args:
            format: `huggingface` (PyTorch), `onnx`, `stablehlo`, or one that another package names
                (`export_formats`).
            plan_rule: the rule inside the artifact; in PyTorch it is an argument of each call.
            int8: the planned layers in int8; `onnx` only.
            int8_all: that, and the other weights stored in int8; `onnx` only.
            standard_operators: none of onnxruntime's own; `onnx` only.
            default_budget: of calls that name none. Default: the config's, or else 0.75.

        Raises:
            UserError: the format is unknown, lacks a package, or cannot have what was asked; or the
                folder is in use or cannot be written.
        """
        export_format(format).export(
            self,
            Path(folder),
            plan_rule=plan_rule,
            int8=int8,
            int8_all=int8_all,
            standard_operators=standard_operators,
            default_budget=default_budget,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a DPBERT",
        default_budget: float | None = None,
    ) -> str:
        """Uploads what the format `huggingface` writes: weights, tokenizer, code, model card.

        `from_pretrained(repo_id)` loads it again. The card has the task, the budgets, and the
        scores that the files of the folder hold which the model was loaded from.

        Args:
            private: of a repository that is new; None: as the owner's settings have it.
            token: default: the one that `hf auth login` left, or HF_TOKEN.
            default_budget: as of `export`.

        Returns:
            The repository's address.

        Raises:
            UserError: the hub refuses, or cannot be reached; or as `export` does.
        """
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            self.export("huggingface", folder, default_budget=default_budget)
            return upload_folder(
                folder, repo_id, private=private, token=token, commit_message=commit_message
            )

    def executor(self, name: str, *, chunk_size: int | None = None) -> Executor:
        """An executor of the model, by name: see `inference.make_executor`.

        Those that skip layers share the weights as `prepare` lays them out.
        """
        weights = self.params if name == "masked" else self._weights
        return make_executor(name, self.config, weights, self.dtype, chunk_size=chunk_size)

    def predict(
        self,
        texts: Any,
        text_pairs: Any = None,
        *,
        budget: float = 1.0,
        plan_rule: str = "threshold",
        truncation: bool = True,
        max_length: int | None = None,
    ) -> list[Prediction]:
        """What the model says of texts, each with a plan of its own, in their order.

        Fewer than 512 texts run one by one (`cond`), more are packed together (`packed`), to the
        same answers. Either compiles for each length bucket, on the first text or call of that
        length: see `warm_up`.

        Args:
            texts: a list, tuple, numpy array or pandas Series of strings, or of pairs of strings.
            text_pairs: second segments, one for each text, where the task has two.
            budget: share of the dense FLOPs to spend, in the trained range.
            plan_rule: `threshold`, depth varies with the input; `top_k`, the same for each.
            truncation: whether longer texts are cut, as in evaluation; or else refused.
            max_length: the most tokens of an input. Default: `max_seq_length`.

        Raises:
            UserError: something that is no text, named with its position; lists of unlike length;
                with `truncation=False`, a text that is too long; a budget out of range; an answer
                that is not finite; or a call in a forked process.
        """
        _refuse_fork()
        rows = read_texts(texts, text_pairs)
        rule = resolve_rule(self.config, budget, plan_rule)
        longest = self.max_seq_length if max_length is None else self._check_length(max_length)
        split, truncated = self._encoder.encode(rows, longest, truncation)
        encoder = self.config.encoder
        logits = np.zeros((len(split), encoder.num_labels), np.float32)
        layer_mask = np.zeros((len(split), encoder.num_hidden_layers), bool)
        cost = np.zeros(len(split))
        for execute, batch in self._batches(split, longest):
            output = execute(batch, rule)
            real = batch["indices"] >= 0
            numbers = batch["indices"][real]
            logits[numbers] = np.asarray(output.logits)[real]
            layer_mask[numbers] = np.asarray(output.layer_mask)[real] > 0
            lengths = batch["attention_mask"].sum(axis=1)[real]
            cost[numbers] = execute.cost(output, real, lengths)
        labels, scores, shares = decode_logits(encoder, logits)
        layers = [tuple(np.flatnonzero(row).tolist()) for row in layer_mask]
        columns = labels, scores, layers, shares, cost.tolist(), truncated.tolist()
        return [Prediction(*row) for row in zip(*columns, strict=True)]

    def warm_up(self, lengths: Sequence[int] | None = None) -> None:
        """Compiles what single texts of these numbers of tokens need; default: of any number.

        Raises:
            UserError: a length is below 1 or above `max_seq_length`.
        """
        longest = self.max_seq_length
        wanted = lengths if lengths is not None else [*LENGTH_BUCKETS, longest]
        if lengths is not None and not all(0 < length <= longest for length in lengths):
            raise UserError(f"warm_up: lengths must lie in 1 .. {longest}, but are {lengths}.")
        rule = resolve_rule(self.config, 1.0)
        for width in sorted({bucket_length(min(n, longest), longest) for n in wanted}):
            ids = np.full((1, width), self.config.encoder.pad_token_id, np.int32)
            ones = np.ones_like(ids)
            batch = {"input_ids": ids, "attention_mask": ones, "token_type_ids": 0 * ones}
            self._one(batch, rule)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            raise UserError("Only a model that was loaded from a folder can be pickled: save it.")
        dtype = jnp.dtype(self.dtype).name
        return partial(Model.from_pretrained, dtype=dtype), (str(self.folder.absolute()),)

    @cached_property
    def _weights(self) -> Weights:
        return prepare(self.config, own_policy(self.config), self.params, self.dtype)

    @cached_property
    def _one(self) -> Executor:
        return self.executor("cond")

    @cached_property
    def _many(self) -> Executor:
        return self.executor("packed")

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.tokenizer)

    def _check_length(self, length: int) -> int:
        positions = self.config.encoder.longest_input
        if not 0 < length <= positions:
            raise UserError(
                f"The longest input is to have {length} tokens, but the model has positions for "
                f"1 to {positions}."
            )
        return length

    def _batches(self, split: TokenizedSplit, longest: int) -> Iterator[tuple[Executor, Batch]]:
        pad = self.config.encoder.pad_token_id
        if len(split) < CHUNK_ROWS:
            for batch in batches(split, 1, longest, pad_token_id=pad):
                yield self._one, batch
        else:
            for batch in chunks(split, CHUNK_ROWS, longest, pad_token_id=pad):
                yield self._many, batch


def decode_logits(
    encoder: EncoderConfig, logits: np.ndarray
) -> tuple[list[Any], list[float], list[Any]]:
    """Label, score and probabilities of each row of logits [N, C], as a `Prediction` has them."""
    answer = answers(logits, encoder.problem_type)
    if encoder.is_regression:
        return [None] * len(logits), answer.tolist(), [None] * len(logits)
    names = encoder.label_names
    shares = probabilities(logits, encoder.problem_type)
    if encoder.is_multi_label:
        labels: list[Any] = [tuple(names[i] for i in np.flatnonzero(row)) for row in answer]
    else:
        labels = [names[i] for i in answer]
    named = [dict(zip(names, row, strict=True)) for row in shares.tolist()]
    return labels, shares.max(axis=1).tolist(), named


def _refuse_fork() -> None:
    """JAX's threads stay behind in a fork: whatever waits for them there waits for good."""
    if Model._process not in (None, os.getpid()):
        raise UserError(
            f"This is a fork (process {os.getpid()}) of process {Model._process}, which loaded a "
            "model, and JAX does not work in a fork. Load the model in the worker itself: gunicorn "
            "without --preload, multiprocessing with 'spawn'."
        )
    Model._process = os.getpid()
