"""Tune a network for INT8: a better table, and if wanted a better model."""
