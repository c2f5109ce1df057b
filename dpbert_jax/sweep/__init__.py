"""Sweep: a run's whole curve of score against cost, with the controls that could prove it wrong."""
