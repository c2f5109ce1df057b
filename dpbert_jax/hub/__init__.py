"""The hub: Hugging Face folders and ids, in and out."""

from dpbert_jax.hub.folders import (
    load_params,
    load_run,
    load_tokenizer,
    resolve_folder,
    save_folder,
    save_weights,
)

__all__ = [
    "load_params",
    "load_run",
    "load_tokenizer",
    "resolve_folder",
    "save_folder",
    "save_weights",
]
