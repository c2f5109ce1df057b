"""Baselines: what a learned plan has to beat, on the same backbone at the same cost."""
