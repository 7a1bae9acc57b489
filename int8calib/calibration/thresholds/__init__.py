"""Histograms come in, thresholds go out: one file per method behind one registry."""

from __future__ import annotations

# Importing a method's module registers it.
from int8calib.calibration.thresholds import (
    aciq,
    kl,
    kl_tensorrt,
    kl_tool,
    kl_tool_v1,
    minmax,
    mse,
    percentile,
)
from int8calib.calibration.thresholds.registry import (
    MethodOptions,
    Threshold,
    find_threshold,
    find_thresholds,
    method_names,
    register_method,
    summary,
)

__all__ = [
    "MethodOptions",
    "Threshold",
    "aciq",
    "find_threshold",
    "find_thresholds",
    "kl",
    "kl_tensorrt",
    "kl_tool",
    "kl_tool_v1",
    "method_names",
    "minmax",
    "mse",
    "percentile",
    "register_method",
    "summary",
]
