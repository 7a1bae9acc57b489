"""Thresholds of blobs from their histograms: the methods, and the registry that calls them."""

from __future__ import annotations

# Importing a method's module registers it.
from int8calib.calibration.thresholds import aciq, kl, minmax, mse, percentile  # noqa: F401
from int8calib.calibration.thresholds.registry import (
    DEFAULT_METHOD,
    MethodOptions,
    Threshold,
    find_threshold,
    find_thresholds,
    method_names,
    register_method,
    summary,
)

__all__ = [
    "DEFAULT_METHOD",
    "MethodOptions",
    "Threshold",
    "find_threshold",
    "find_thresholds",
    "method_names",
    "register_method",
    "summary",
]
