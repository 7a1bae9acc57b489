"""Importing this module registers every ncnn layer that has functions of its own."""

from __future__ import annotations

from int8calib.ncnn.translate.layers import (  # noqa: F401
    detection,
    matrices,
    normalization,
    pointwise,
    pooling,
    rearranging,
    reduction,
    reshaping,
    resizing,
)
