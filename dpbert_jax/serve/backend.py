"""What answers: this library in JAX, or an ONNX export in onnxruntime, behind one function."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.data import LENGTH_BUCKETS, TokenizedSplit, batches
from dpbert_jax.errors import UserError
from dpbert_jax.export.formats import ExportOptions, load_artifact
from dpbert_jax.export_formats import export_format
from dpbert_jax.hub import load_tokenizer
from dpbert_jax.integrity import SUMS
from dpbert_jax.model import Model
from dpbert_jax.policies.rule import Rule, check_budget, resolve_rule
from dpbert_jax.policies.tokens import own_policy
from dpbert_jax.run_folder import EXPORT_CONFIG, read_max_seq_length

logger = logging.getLogger(__name__)

BACKENDS = ("jax", "onnx")
AUTO = "auto"
SMALL_BATCH = 8  # rows that a small batch is filled up to, so that few shapes are compiled


class Answers(NamedTuple):
    """What was said of N texts."""

    logits: np.ndarray  # [N, C]
    layer_mask: np.ndarray  # [N, L]
    cost: np.ndarray  # [N], share of the dense FLOPs


Answer = Callable[[TokenizedSplit, Sequence[float]], Answers]  # rows, each at its own budget


@dataclass(frozen=True)
class Backend:
    """A model, ready to answer."""

    name: str
    model_id: str  # the folder's name, or the hub id
    config: DPBertConfig
    tokenizer: Any
    max_seq_length: int
    answer: Answer  # the caller has checked the budgets
    warm_up: Callable[[], None]
    weights: str  # SHA-256 of all of them

    def check_budget(self, budget: float) -> None:
        """Refuses a budget that the model cannot be asked for.

        Raises:
            UserError: names the range.
        """
        check_budget(self.config, budget)


def open_backend(
    model_name_or_path: str, name: str, *, max_batch_size: int, max_padding: float
) -> Backend:
    """Loads a run or an ONNX export; `auto` takes what the folder holds.

    Args:
        max_padding: of onnxruntime, padded tokens that a batch may have for each real one.

    Raises:
        UserError: the folder is neither, its files have been changed, or a package is missing.
    """
    folder = Path(model_name_or_path)
    exported = _exported_format(folder)
    if name == AUTO:
        name = "onnx" if exported == "onnx" else "jax"
        held = "an ONNX export" if name == "onnx" else "no ONNX export"
        logger.info("--backend auto is %s: %s is %s.", name, folder, held)
    if name == "onnx":
        if exported != "onnx":
            raise UserError(
                f"--backend onnx: {folder} is no ONNX export; write one with `dpbert export "
                f"{folder} --format onnx --output_dir FOLDER`, and serve that folder."
            )
        return _onnx_backend(folder, max_batch_size, max_padding)
    if exported == "onnx":
        raise UserError(f"--backend jax: {folder} is an ONNX export; name the run that it is of.")
    return _jax_backend(Model.from_pretrained(model_name_or_path), max_batch_size)


def _exported_format(folder: Path) -> str | None:
    try:
        return json.loads((folder / EXPORT_CONFIG).read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError):
        return None


def _jax_backend(model: Model, max_batch_size: int) -> Backend:
    """`cond` for a text alone; for more of them `packed` on a CPU, `chunked` elsewhere."""
    config, longest = model.config, model.max_seq_length
    one = model.executor("cond")
    many = model.executor("packed" if jax.default_backend() == "cpu" else "chunked")
    sizes = sorted({min(SMALL_BATCH, max_batch_size), max_batch_size})
    buckets = sorted({max(longest // part, 1) for part in (4, 2)})

    def answer(rows: TokenizedSplit, budgets: Sequence[float]) -> Answers:
        rules = [resolve_rule(config, budget) for budget in budgets]
        alone = len(rows) == 1
        size = 1 if alone else next((s for s in sizes if s >= len(rows)), len(rows))
        thresholds = np.array([[rule.threshold] for rule in rules], np.float32)
        stays: Any = 0.0
        if config.token_selectors:
            stays = np.array([[rule.stay] for rule in rules], np.float32)
        rule = rules[0] if alone else Rule(budgets[0], thresholds, config.num_gates, stays)
        logits = np.zeros((len(rows), config.encoder.num_labels), np.float32)
        layer_mask = np.zeros((len(rows), config.encoder.num_hidden_layers), np.float32)
        cost = np.zeros(len(rows), np.float32)
        made = batches(
            rows,
            size,
            longest,
            pad_token_id=config.encoder.pad_token_id,
            length_buckets=None if alone else buckets,
        )
        for batch in made:
            execute = one if alone else many
            output = execute(batch, rule.of_rows(batch["indices"]))
            real = batch["indices"] >= 0
            at = batch["indices"][real]
            logits[at] = np.asarray(output.logits)[real]
            layer_mask[at] = np.asarray(output.layer_mask)[real]
            cost[at] = execute.cost(output, real, rows.lengths[at])
        return Answers(logits, layer_mask, cost)

    def warm_up() -> None:
        alone = [length for length in LENGTH_BUCKETS if length < longest]
        for size, shorter in ((1, alone), *((size, buckets) for size in sizes)):
            for length in [*shorter, longest]:
                answer(random_rows(size, length, config.encoder.vocab_size), [1.0] * size)

    folder = model.folder
    name = folder.name if folder else "model"
    weights = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        weights.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    digest = weights.hexdigest()
    return Backend("jax", name, config, model.tokenizer, longest, answer, warm_up, digest)


def random_rows(number: int, length: int, vocab_size: int) -> TokenizedSplit:
    """Texts of so many tokens each, drawn alike in every call: to warm and to time shapes with."""
    ids = np.random.default_rng(0).integers(0, vocab_size, number * length, np.int32)
    offsets = np.arange(number + 1, dtype=np.int64) * length
    return TokenizedSplit(ids, np.zeros(len(ids), np.int8), offsets, None)


def _onnx_backend(folder: Path, max_batch_size: int, max_padding: float) -> Backend:
    chosen = export_format("onnx")
    chosen.require(chosen.to_run, "--backend onnx")
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    longest = read_max_seq_length(folder) or config.encoder.longest_input
    # Its weights are in the artifact.
    model = Model(config, {}, tokenizer, longest, folder)
    call, policy = load_artifact(chosen, folder, model, ExportOptions()), own_policy(config)
    layers = config.encoder.num_hidden_layers

    def answer(rows: TokenizedSplit, budgets: Sequence[float]) -> Answers:
        logits = np.zeros((len(rows), config.encoder.num_labels), np.float32)
        layer_mask = np.ones((len(rows), layers), np.float32)
        tokens = np.repeat(np.asarray(rows.lengths)[:, None], layers, axis=1)
        for group in even_groups(rows.lengths, np.asarray(budgets), max_padding):
            [batch] = batches(
                rows.take(group),
                len(group),
                longest,
                pad_token_id=config.encoder.pad_token_id,
                length_buckets=[int(rows.lengths[group].max())],
            )
            at = group[batch["indices"]]
            logits[at], layer_mask[at], *left = call(batch, budgets[group[0]])
            if left:
                tokens[at] = left[0]
        if not np.isfinite(logits).all():
            raise FloatingPointError("the model computes NaN or infinity")
        lengths = tokens if config.token_selectors else rows.lengths
        return Answers(logits, layer_mask, policy.cost(layer_mask, lengths))

    def warm_up() -> None:
        # Nothing is compiled for a shape, but memory is: it is had once for the largest.
        for number in (1, max_batch_size):
            for length in (1, longest):
                answer(random_rows(number, length, config.encoder.vocab_size), [1.0] * number)

    digest = hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()  # of all its files
    return Backend("onnx", folder.name, config, tokenizer, longest, answer, warm_up, digest)


def even_groups(
    lengths: np.ndarray, budgets: np.ndarray, max_padding: float
) -> Iterator[np.ndarray]:
    """Rows of one budget and of about one length: as few groups as keep padding below a share."""
    order = np.lexsort((-lengths, budgets))
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and budgets[order[end]] == budgets[order[start]]:
            group = order[start : end + 1]
            if lengths[group[0]] * len(group) <= max_padding * lengths[group].sum():
                continue
        yield order[start:end]
        start = end
