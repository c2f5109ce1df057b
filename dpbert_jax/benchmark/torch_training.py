"""A plain PyTorch training loop, as Hugging Face's run_glue has it, one step a call."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpbert_jax.config_file import read_config

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 5e-5, 0.01, 1.0
NUM_STEPS = 10_000  # of the linear schedule: more than any benchmark takes


def load(folder: Path, threads: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """The step of the model in `folder`: batch -> [loss, gradient's norm, parameters updated].

    Attention is `sdpa`, dropout as in the config, the optimizer the Trainer's default (AdamW,
    fused), without decay on biases and LayerNorm.
    """
    torch: Any = importlib.import_module("torch")
    from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    load_model = AutoModelForSequenceClassification.from_pretrained
    model: Any = load_model(folder, attn_implementation="sdpa").train()
    names = (*read_config(folder).encoder.inputs, "labels")
    named = list(model.named_parameters())
    plain = [p for name, p in named if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for name, p in named if not (name.endswith("bias") or "LayerNorm" in name)]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, NUM_STEPS)

    def call(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        tensors = {name: torch.from_numpy(np.int64(batch[name])) for name in names}
        loss = model(**tensors).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        updated = sum(p.numel() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return np.array([loss.item(), norm.item(), updated])

    return call
