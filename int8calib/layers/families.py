"""Importing this module registers every layer type the package brings; one line a family."""

from __future__ import annotations

from int8calib.layers import (  # noqa: F401
    activation,
    combine,
    convolution,
    inner_product,
    normalization,
    pooling,
    reshaping,
)
