"""The key table: which Hugging Face tensor is which parameter of ours, read in both directions."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import jax
import numpy as np

from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.encoder.attention import RELATIVE
from dpbert_jax.encoder.embeddings import WORDS, table_sizes
from dpbert_jax.encoder.operations import Params
from dpbert_jax.encoder.word_table import PLACE, factor_shapes
from dpbert_jax.policies.adapted import adapter_shapes
from dpbert_jax.policies.planner import planner_products
from dpbert_jax.policies.tokens import selector_products


class Names(NamedTuple):
    """How a family calls its tensors; the defaults are BERT's."""

    prefix: str
    layers: str = "encoder.layer"
    layer: Mapping[str, str] = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_layer_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_layer_norm": "output.LayerNorm",
    }
    pooler: str = "classifier.dense"  # the head's first product
    classifier: str = "classifier.out_proj"


NAMES = {
    "bert": Names("bert", pooler="bert.pooler.dense", classifier="classifier"),
    "roberta": Names("roberta"),
    "xlm-roberta": Names("roberta"),
    "camembert": Names("roberta"),
    "distilbert": Names(
        "distilbert",
        "transformer.layer",
        {
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention_output": "attention.out_lin",
            "attention_layer_norm": "sa_layer_norm",
            "intermediate": "ffn.lin1",
            "output": "ffn.lin2",
            "output_layer_norm": "output_layer_norm",
        },
        "pre_classifier",
        "classifier",
    ),
    "electra": Names("electra"),
    "mpnet": Names(
        "mpnet",
        layer={
            "query": "attention.attn.q",
            "key": "attention.attn.k",
            "value": "attention.attn.v",
            "attention_output": "attention.attn.o",
            "attention_layer_norm": "attention.LayerNorm",
            "intermediate": "intermediate.dense",
            "output": "output.dense",
            "output_layer_norm": "output.LayerNorm",
        },
    ),
}
# What a checkpoint of the bare encoder begins its names with: the prefix is missing there.
_BARE = ("embeddings.", "embeddings_project.", "encoder.", "transformer.", "pooler.")
# Heads of pretraining, which have no place in a classifier.
_PRETRAINING = (
    "cls.",
    "lm_head.",
    "vocab_",
    "generator_",
    "discriminator_predictions.",
)


class Entry(NamedTuple):
    """`hf` tensor name <-> `path` in the parameter tree, of this `shape` there."""

    hf: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any = np.float32

    @property
    def transposed(self) -> bool:
        """Theirs are [out, in] matrices."""
        return self.path[-1] == "kernel" and self.path[0] != "adapters"

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        # A contiguous copy, so that nothing downstream sees a strided view.
        return np.ascontiguousarray(array.T if self.transposed else array, dtype=self.dtype)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T if self.transposed else array)


def _dense(hf: str, inputs: int, outputs: int, *path: str) -> list[Entry]:
    return [
        Entry(f"{hf}.weight", (*path, "kernel"), (inputs, outputs)),
        Entry(f"{hf}.bias", (*path, "bias"), (outputs,)),
    ]


def _layer_norm(hf: str, width: int, *path: str) -> list[Entry]:
    return [
        Entry(f"{hf}.weight", (*path, "scale"), (width,)),
        Entry(f"{hf}.bias", (*path, "bias"), (width,)),
    ]


def _embeddings(config: EncoderConfig, prefix: str) -> list[Entry]:
    width = config.token_size
    hf, ours = f"{prefix}.embeddings", "embeddings"
    table = [
        Entry(f"{hf}.{name}.weight", (ours, name, "embedding"), (size, width))
        for name, size in table_sizes(config).items()
    ]
    if config.compression:
        shapes = jax.tree_util.tree_leaves_with_path(factor_shapes(config))
        for keys, leaf in shapes:
            path = tuple(key.key for key in keys)
            # The map lies where the plain table did: a class that knows no factors would draw the
            # table at random, and warn at most, but of a tensor of another shape it refuses.
            name = ".".join((f"{hf}.{WORDS}", *path)).replace(PLACE, "weight")
            table.append(Entry(name, (ours, WORDS, *path), leaf.shape, leaf.dtype))
    table += _layer_norm(f"{hf}.LayerNorm", width, ours, "layer_norm")
    if config.projects:
        table += _dense(
            f"{prefix}.embeddings_project", width, config.hidden_size, ours, "projection"
        )
    return table


def _layer(config: EncoderConfig, names: Names, i: int) -> list[Entry]:
    hidden, wide = config.hidden_size, config.intermediate_size
    table = []
    for part, theirs in names.layer.items():
        hf, path = f"{names.prefix}.{names.layers}.{i}.{theirs}", (f"layer_{i}", part)
        if part.endswith("layer_norm"):
            table += _layer_norm(hf, hidden, *path)
        else:
            inputs = wide if part == "output" else hidden
            table += _dense(hf, inputs, wide if part == "intermediate" else hidden, *path)
    return table


def _adapters(config: DPBertConfig) -> list[Entry]:
    if config.adapters is None:
        return []
    return [
        Entry(".".join(("adapters", *path)), ("adapters", *path), shape)
        for part, shapes in adapter_shapes(config).items()
        for path, shape in (
            ((part, name, leaf), shape)
            for name, leaves in shapes.items()
            for leaf, shape in leaves.items()
        )
    ]


def key_table(config: DPBertConfig) -> list[Entry]:
    """One entry for each parameter of a model with this config."""
    encoder = config.encoder
    names, hidden = NAMES[encoder.model_type], encoder.hidden_size
    table = _embeddings(encoder, names.prefix)
    if encoder.family.relative_attention:
        shape = (encoder.relative_attention_num_buckets, encoder.num_attention_heads)
        hf = f"{names.prefix}.encoder.relative_attention_bias.weight"
        table.append(Entry(hf, (RELATIVE, "embedding"), shape))
    table += [e for i in range(encoder.num_hidden_layers) for e in _layer(encoder, names, i)]
    table += _dense(names.pooler, hidden, hidden, "head", "pooler")
    table += _dense(names.classifier, hidden, encoder.num_labels, "head", "classifier")
    table += _adapters(config)
    for name, product in planner_products(config).items():
        table += _dense(f"planner.{name}", product.inputs, product.outputs, "planner", name)
    for selector, products in selector_products(config).items():
        for name, (inputs, outputs) in products.items():
            table += _dense(f"{selector}.{name}", inputs, outputs, selector, name)
    return table


def leaf_at(params: Params, path: tuple[str, ...]) -> Any:
    """A parameter by its path."""
    return reduce(getitem, path, params)


def as_tree(flat: Mapping[tuple[str, ...], Any]) -> Params:
    """Parameters by path, as a tree."""
    tree: Params = {}
    for path, leaf in flat.items():
        reduce(lambda branch, name: branch.setdefault(name, {}), path[:-1], tree)[path[-1]] = leaf
    return tree


def layer_pattern(config: EncoderConfig) -> re.Pattern[str]:
    """Of the name of a layer's tensor: what stands before the layer's number, it, the rest."""
    names = NAMES[config.model_type]
    return re.compile(rf"({re.escape(f'{names.prefix}.{names.layers}.')})(\d+)(\..+)")


def canonical_hf_key(key: str, config: EncoderConfig) -> str | None:
    """Today's name of a tensor in a published checkpoint; None for what no classifier has.

    Old checkpoints say gamma and beta; those of a bare encoder lack the prefix; pretraining heads,
    position counters, and a pooler that the family's classifiers do not read, are left out.
    """
    names = NAMES[config.model_type]
    if key.startswith(_PRETRAINING) or key.endswith("position_ids"):
        return None
    key = key.removesuffix(".gamma") + ".weight" if key.endswith(".gamma") else key
    key = key.removesuffix(".beta") + ".bias" if key.endswith(".beta") else key
    key = f"{names.prefix}.{key}" if key.startswith(_BARE) else key
    pooler = f"{names.prefix}.pooler."
    return None if key.startswith(pooler) and not names.pooler.startswith(pooler) else key


def of_encoder(key: str, config: EncoderConfig) -> bool:
    """Whether a tensor's name is one of the encoder or of what decides, and of no other head."""
    ours = ("planner.", "adapters.", "selector_")
    return key.startswith((f"{NAMES[config.model_type].prefix}.", *ours))


# What one line of a list stands for: a layer, a part of the encoder, or all of another head.
_PREFIXES = "|".join(sorted({names.prefix for names in NAMES.values()}))
_PART = re.compile(
    rf"(?:{_PREFIXES})\.(?:encoder|transformer)\.layer\.\d+|(?:{_PREFIXES})\.\w+|[^.]+"
)


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
