"""The format `huggingface`: a folder that PyTorch loads, with the planned model's code in it."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from dpbert_jax.export.card import complete_card
from dpbert_jax.export.formats import Answer, Batch, Call, ExportOptions, Format, dense_answer
from dpbert_jax.export.torch_folder import save_torch_folder
from dpbert_jax.model import Model


def _write(folder: Path, model: Model, options: ExportOptions) -> None:
    save_torch_folder(folder, model.config, model.params, model.tokenizer)
    complete_card(folder, model)


def _load(folder: Path, model: Model, options: ExportOptions) -> Call:
    torch: Any = importlib.import_module("torch")
    from transformers import AutoModelForSequenceClassification

    # This library's own code, just written there.
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    loaded.eval()
    planned, names = model.config.planner is not None, model.config.encoder.inputs

    def call(batch: Batch, budget: float) -> Answer:
        tensors = {name: torch.from_numpy(np.int64(batch[name])) for name in names}
        with torch.inference_mode():
            if not planned:
                return dense_answer(loaded(**tensors).logits.numpy(), model.config)
            made = loaded(**tensors, budget=budget, plan_rule=options.plan_rule)
        answer = (made.logits, made.layer_mask, *([] if made.tokens is None else [made.tokens]))
        return tuple(part.numpy() for part in answer)

    return call


FORMAT = Format(
    "huggingface", _write, _load, (), ("torch",), "dpbert-jax[torch]", rule_of_call=True
)
