"""Benchmark: what skipping is worth in time, beside the runtimes that a user would else pick."""
