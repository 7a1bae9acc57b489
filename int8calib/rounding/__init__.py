"""Weights rounded to INT8 levels by what they do to the outputs of their layer."""
