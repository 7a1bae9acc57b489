"""Compiled loops of the simulation: float values to INT8 levels, integer sums back to floats.

Levels are whole numbers kept as float32, so that BLAS can multiply them: its sums are exact as
long as they stay below 2**24. Imported inside the functions that need it, so that importing
`int8calib.simulation` does not load numba. Arrays in, arrays out, nothing shared between threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, float64, int64, void
from numba.types import UniTuple

from int8calib.stats.kernels import kernel, readonly

MOST = np.float32(127)
HALF = np.float32(0.5)


@kernel(void(readonly(float32), float32, float32[::1]))
def quantise(values: Any, scale: Any, levels: Any) -> None:
    """Write round(value * scale), half away from zero, clamped to -127..127, into `levels`.

    0.5 is added in float32 before the fraction is cut off, so 0.49999997 gives 1. Plain C and ARM
    would give 0 there; the value is met often enough to show in a comparison on x86.
    Source: float2int8 in ncnn's src/layer/x86/x86_usability.h.
    """
    for i in range(values.shape[0]):
        product = values[i] * scale
        away = np.float32(np.copysign(HALF, product))
        level = np.float32(np.trunc(np.float32(product + away)))
        level = level if level < MOST else MOST
        levels[i] = level if level > -MOST else -MOST


@kernel(void(float32[:, ::1], readonly(float32), readonly(float32)))
def dequantise(sums: Any, factors: Any, bias: Any) -> None:
    """Replace `sums` (rows, values) by sum * factor + bias of its row, rounded once.

    ncnn's kernels use fused multiply-add there. A product of two float32 is exact in float64,
    so rounding the float64 sum to float32 gives the same but for one case in 2**29.
    Source: ncnn's src/layer/dequantize.cpp and src/layer/x86/dequantize_x86.cpp.
    """
    for row in range(sums.shape[0]):
        factor, offset = float64(factors[row]), float64(bias[row])
        for i in range(sums.shape[1]):
            sums[row, i] = np.float32(float64(sums[row, i]) * factor + offset)
