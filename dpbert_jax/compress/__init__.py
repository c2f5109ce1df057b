"""Compression: a trained model's word embeddings as int8 factors, and a short training to heal."""
