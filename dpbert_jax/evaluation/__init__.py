"""Evaluation: GLUE metrics, exact scores over a split, calibration of budgets, plots."""
