"""The encoder: embeddings, the layer in its two forms, head, and what a layer costs."""
