"""Activations come in, ranges and histograms that can be merged go out."""
