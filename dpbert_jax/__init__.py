"""dpbert_jax: input-adaptive BERT inference with a planner that chooses layers for every input."""

import os

# transformers is here for tokenizers, flags and configs; it need not advise to install torch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
