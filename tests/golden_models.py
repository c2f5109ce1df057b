"""Small random models of Hugging Face's, one of each family, as folders."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "golden"
FAMILIES = tuple(sorted(path.stem.removesuffix("_tiny") for path in FOLDER.glob("*_tiny.npz")))


@dataclass(frozen=True)
class Golden:
    """What `golden/make_golden.py` wrote of a family."""

    family: str
    weights: dict[str, np.ndarray]
    batch: dict[str, np.ndarray]  # as this library takes it
    config: str  # contents of config.json
    hidden_states: np.ndarray  # [1 + L, B, S, D]
    logits: np.ndarray  # [B, C]

    def write(self, folder, rename=lambda name: name):
        """Writes the model's folder, without a tokenizer."""
        weights = {rename(name): value for name, value in self.weights.items()}
        save_file(weights, str(folder / "model.safetensors"))
        (folder / "config.json").write_text(self.config, encoding="utf-8")
        return folder


def golden(family):
    with np.load(FOLDER / f"{family}_tiny.npz") as file:
        arrays = dict(file)

    def part(name):
        return {k.removeprefix(name): v for k, v in arrays.items() if k.startswith(name)}

    batch = part("input/")
    batch.setdefault("token_type_ids", np.zeros_like(batch["input_ids"]))
    return Golden(
        family,
        part("weight/"),
        batch,
        str(arrays["config"]),
        arrays["hidden_states"],
        arrays["logits"],
    )
