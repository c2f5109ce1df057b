"""Loads and saves Hugging Face folders: `config.json`, `model.safetensors`, tokenizer files."""

import json
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from dpbert_jax.bucket import BucketFolder, is_url
from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.config_file import read_config, write_config
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.hub.keys import (
    Entry,
    as_tree,
    by_prefix,
    canonical_hf_key,
    key_table,
    leaf_at,
    of_encoder,
)
from dpbert_jax.hub.packaged import PACKAGED
from dpbert_jax.integrity import (
    SUMS,
    digest,
    inside,
    is_weights,
    model_files,
    verify,
    write_sums,
)
from dpbert_jax.run_folder import EXPORT_CONFIG

logger = logging.getLogger(__name__)

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
    """The local folder of a model: a folder, a bucket's URL, a packaged model, or a hub id.

    Packaged are `minilm` and `mpnet`, in `hub.packaged`.

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
    if model_name_or_path in PACKAGED:
        return PACKAGED[model_name_or_path]()
    if path.is_absolute() or model_name_or_path.count("/") > 1 or path.exists():
        raise UserError(f"{model_name_or_path} is not a folder.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_name_or_path, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"'{model_name_or_path}' is neither a folder, nor one of {list(PACKAGED)}, nor a model "
            f"that the Hugging Face hub would give: {reason}"
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


def read_tensors(folder: Path, config: EncoderConfig) -> dict[str, np.ndarray]:
    """All tensors of the folder's encoder and head under today's Hugging Face names.

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
            canonical = canonical_hf_key(key, config)
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
        fresh: parts (`head`, `planner`) that are initialised from `seed` where the file does not
            have them, and heads of other kinds are left out; everything else must be there, and
            nothing more.
        ignore_mismatched_sizes: initialise those parts also where the file's have other shapes.

    Raises:
        UserError: with every missing key, unexpected key and misfit of shape, all at once; or the
            weights are not what the folder's checksums list.
    """
    tensors = read_tensors(folder, config.encoder)
    table, fresh = key_table(config), tuple(fresh)
    stored = {e.hf: tensors[e.hf].dtype for e in table if e.hf in tensors}
    flat = {e.path: e.to_ours(tensors.pop(e.hf)) for e in table if e.hf in tensors}
    absent = [e for e in table if e.path not in flat]
    misfits = {
        e.hf: (e, f"{e.hf} has shape {flat[e.path].shape}, expected {e.shape}")
        for e in table
        if e.path in flat and flat[e.path].shape != e.shape
    }
    misfits |= {  # whole numbers are never made of others
        e.hf: (e, f"{e.hf} has type {stored[e.hf]}, expected {np.dtype(e.dtype)}")
        for e in table
        if e.path in flat and e.dtype != np.float32 and stored[e.hf] != e.dtype
    }

    def may_be_drawn(entry: Entry) -> bool:
        return entry.path[0] in fresh

    replaced = {  # products, each drawn as a whole
        entry.path[:2]
        for entry, _ in misfits.values()
        if ignore_mismatched_sizes and may_be_drawn(entry)
    }
    if ("head", "pooler", "kernel") in {e.path for e in absent}:
        replaced.add(("head", "classifier"))  # without what it reads it is one of single tokens
    drawn = [e for e in table if may_be_drawn(e) and (e in absent or e.path[:2] in replaced)]
    missing = [e.hf for e in absent if not may_be_drawn(e)]
    kept_misfits = [name for name, (entry, _) in misfits.items() if entry not in drawn]
    # Where nothing is missing, what is left over belongs to another head.
    unexpected = [key for key in tensors if missing or not fresh or of_encoder(key, config.encoder)]
    problems = [misfits[name][1] for name in kept_misfits]
    if missing:
        problems.append(f"missing {by_prefix(missing)}")
    if unexpected:
        problems.append(f"unexpected {by_prefix(unexpected)}")
    if problems:
        heads = [name for name in kept_misfits if may_be_drawn(misfits[name][0])]
        hint = "; train.py starts a new head with --ignore_mismatched_sizes" if heads else ""
        raise UserError(
            f"{folder / WEIGHTS} does not fit config.json: {'; '.join(problems)}{hint}."
        )
    if tensors:
        logger.info("%s: of another head, left out: %s", folder, by_prefix(tensors))
    if drawn:
        old = [e.hf for e in drawn if e not in absent]
        new = [e.hf for e in drawn if e in absent]
        if old:
            logger.info("%s: of another head, newly initialised: %s", folder, by_prefix(old))
        if new:
            logger.info("%s: not in the checkpoint, newly initialised: %s", folder, by_prefix(new))
        from dpbert_jax.policies.dpbert import init_params  # needs Flax, which serving does not

        initial = init_params(config, seed, {entry.path[0] for entry in drawn})
        flat |= {entry.path: np.asarray(leaf_at(initial, entry.path)) for entry in drawn}
    return as_tree(flat)


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
    write_config(config, folder)
    tensors = {e.hf: e.to_hf(np.asarray(leaf_at(params, e.path))) for e in key_table(config)}
    put_weights(folder, tensors)


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
