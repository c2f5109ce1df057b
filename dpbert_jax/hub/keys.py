"""The key table: which Hugging Face tensor is which parameter of ours, read in both directions."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dpbert_jax.config import DPBertConfig

OURS = ("bert.", "classifier.", "planner.")  # what the names in the key table begin with
# What one line of a list stands for: a layer, a part of BERT, or all of another head.
_PART = re.compile(r"bert\.encoder\.layer\.\d+|bert\.\w+|[^.]+")


class Entry(NamedTuple):
    """`hf` tensor name <-> `path` in the parameter tree; `transposed` for [out, in] matrices."""

    hf: str
    path: tuple[str, ...]
    transposed: bool

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        # A contiguous copy, so that nothing downstream sees a strided view.
        return np.ascontiguousarray(array.T if self.transposed else array, dtype=np.float32)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T if self.transposed else array)


def _dense(hf: str, *path: str) -> list[Entry]:
    return [
        Entry(f"{hf}.weight", (*path, "kernel"), True),
        Entry(f"{hf}.bias", (*path, "bias"), False),
    ]


def _layer_norm(hf: str, *path: str) -> list[Entry]:
    return [
        Entry(f"{hf}.weight", (*path, "scale"), False),
        Entry(f"{hf}.bias", (*path, "bias"), False),
    ]


def _embedding(name: str) -> Entry:
    return Entry(f"bert.embeddings.{name}.weight", ("embeddings", name, "embedding"), False)


def _layer(i: int) -> list[Entry]:
    hf, ours = f"bert.encoder.layer.{i}", f"layer_{i}"
    return [
        *_dense(f"{hf}.attention.self.query", ours, "query"),
        *_dense(f"{hf}.attention.self.key", ours, "key"),
        *_dense(f"{hf}.attention.self.value", ours, "value"),
        *_dense(f"{hf}.attention.output.dense", ours, "attention_output"),
        *_layer_norm(f"{hf}.attention.output.LayerNorm", ours, "attention_layer_norm"),
        *_dense(f"{hf}.intermediate.dense", ours, "intermediate"),
        *_dense(f"{hf}.output.dense", ours, "output"),
        *_layer_norm(f"{hf}.output.LayerNorm", ours, "output_layer_norm"),
    ]


def key_table(config: DPBertConfig) -> list[Entry]:
    """One entry for each parameter of a model with this config."""
    table = [
        _embedding("word_embeddings"),
        _embedding("position_embeddings"),
        _embedding("token_type_embeddings"),
        *_layer_norm("bert.embeddings.LayerNorm", "embeddings", "layer_norm"),
        *(entry for i in range(config.encoder.num_hidden_layers) for entry in _layer(i)),
        *_dense("bert.pooler.dense", "head", "pooler"),
        *_dense("classifier", "head", "classifier"),
    ]
    if config.planner:
        table += [
            *_dense("planner.input", "planner", "input"),
            *_dense("planner.output", "planner", "output"),
        ]
    return table


def canonical_hf_key(key: str) -> str | None:
    """Today's name of a tensor in a published BERT checkpoint; None for what is no BERT weight.

    Old checkpoints say gamma and beta; bare `BertModel` checkpoints lack the prefix `bert.`;
    pre-training heads (`cls.*`) and position counters have no place in a classifier.
    """
    if key.startswith("cls.") or key.endswith("position_ids"):
        return None
    key = key.removesuffix(".gamma") + ".weight" if key.endswith(".gamma") else key
    key = key.removesuffix(".beta") + ".bias" if key.endswith(".beta") else key
    bare = key.startswith(("embeddings.", "encoder.", "pooler."))
    return f"bert.{key}" if bare else key


def by_prefix(keys: Iterable[str]) -> str:
    """A list of tensors' names for people: `cls.* (8 tensors), qa_outputs.bias`."""
    keys = sorted(keys)
    prefixes = [match[0] if (match := _PART.match(key)) else key for key in keys]
    counts = Counter(prefixes)
    names = (
        key if counts[prefix] == 1 else f"{prefix}.* ({counts[prefix]} tensors)"
        for key, prefix in zip(keys, prefixes, strict=True)
    )
    return ", ".join(dict.fromkeys(names))
