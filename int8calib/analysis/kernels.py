"""The compiled loop of an analysis: what quantizing the values of a blob changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from int8calib.compiled import kernel
from int8calib.levels import LEVELS


@kernel("float32[:], float32, out float64[:] ->", reorder=True)
def bottom_errors(values: Any, scale: Any, sums: Any) -> None:
    """Sum what quantizing values changes, in float64.

    Parameters
    ----------
    values : float32 (n,)
    scale : float32
        Levels over threshold.
    sums : float64 (3,)
        The result: how many values are clamped to -LEVELS .. LEVELS, the sum of their squared
        errors, and that of all others, which are only rounded.
    """
    step = 1 / np.float64(scale)
    clamped = clipping = rounding = 0.0
    for i in range(values.shape[0]):
        size = abs(values[i])
        level = np.floor(np.float64(np.float32(size * scale)) + 0.5)
        within = min(level, np.float64(LEVELS))
        error = np.float64(size) - within * step
        beyond = np.float64(level > within)
        clamped += beyond
        clipping += beyond * error * error
        rounding += (1 - beyond) * error * error
    sums[0], sums[1], sums[2] = clamped, clipping, rounding
