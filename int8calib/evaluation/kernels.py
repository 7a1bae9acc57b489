"""Compiled loops of the evaluation: float32 vectors in, sums of squares and products out.

Imported inside the functions that need it, so that importing `int8calib.evaluation` does not load
numba. Arrays in, arrays out, nothing shared between threads. All sums are float64; several run
beside each other, so that no addition waits for the one before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from int8calib.jit import float32, float64, kernel, readonly, void

LANES = 8


@kernel(void(readonly(float32), readonly(float32), float64[::1]))
def products(a: Any, b: Any, sums: Any) -> None:
    """Write the sums of a * a, b * b, a * b and (a - b)**2 to `sums` (4,)."""
    partial = np.zeros((4, LANES))
    for start in range(0, a.shape[0], LANES):
        for lane in range(min(LANES, a.shape[0] - start)):
            x, y = np.float64(a[start + lane]), np.float64(b[start + lane])
            partial[0, lane] += x * x
            partial[1, lane] += y * y
            partial[2, lane] += x * y
            partial[3, lane] += (x - y) * (x - y)
    for k in range(4):
        sums[k] = partial[k].sum()


@kernel(void(readonly(float32), float32, float64[::1]))
def bottom_errors(values: Any, scale: Any, sums: Any) -> None:
    """Write to `sums` (3,) what quantising `values` with `scale` changes.

    That is how many values are clamped to -127..127, the sum of their squared errors, and that of
    all others, which are only rounded.
    """
    partial = np.zeros((3, LANES))
    step = 1 / np.float64(scale)
    for start in range(0, values.shape[0], LANES):
        for lane in range(min(LANES, values.shape[0] - start)):
            size = abs(values[start + lane])
            level = np.floor(np.float64(np.float32(size * scale)) + 0.5)
            within = min(level, 127.0)
            error = np.float64(size) - within * step
            beyond = np.float64(level > within)
            partial[0, lane] += beyond
            partial[1, lane] += beyond * error * error
            partial[2, lane] += (1 - beyond) * error * error
    for k in range(3):
        sums[k] = partial[k].sum()
