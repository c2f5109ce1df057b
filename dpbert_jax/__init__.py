"""dpbert_jax: input-adaptive BERT inference with a planner that chooses layers for every input."""
