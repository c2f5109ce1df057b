"""Exports: a run as an artifact of another runtime, and the proof that it is the same."""
