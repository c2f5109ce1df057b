"""The model: functional Flax Linen BERT, its gates, its planner, their sum, and what plans cost."""

from dpbert_jax.model.dpbert import DPBert, DPBertOutput, Params, init_params

__all__ = ["DPBert", "DPBertOutput", "Params", "init_params"]
