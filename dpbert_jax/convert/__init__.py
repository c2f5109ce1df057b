"""Conversion between Hugging Face folders and this library's parameters."""

from dpbert_jax.convert.huggingface import (
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
