"""dpbert_jax: input-adaptive BERT inference with a planner that chooses layers for every input.

from dpbert_jax import Model

model = Model.from_pretrained("runs/mrpc")
for each in model.predict(["A text."], budget=0.6):
    print(each.label, each.layers)
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpbert_jax.model import Model, Prediction

    __version__: str

# transformers is here for tokenizers, flags and configs; it need not advise to install torch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__all__ = ["Model", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    # On demand: programs that train set up their memory before JAX is imported (see allocator).
    if name == "__version__":
        from importlib.metadata import version

        return version("dpbert-jax")
    if name in ("Model", "Prediction"):
        from dpbert_jax import model

        return getattr(model, name)
    raise AttributeError(f"module 'dpbert_jax' has no attribute {name!r}")
