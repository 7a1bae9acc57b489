"""The INT8 arithmetic of ncnn, in numpy: rounding to levels, and sums back to floats.

Levels are whole numbers kept as float32, so that BLAS can multiply them: its sums are exact as
long as they stay below 2**24. Both functions go through their arrays in blocks that stay in the
cache between the steps.
"""

from __future__ import annotations

import numpy as np

from int8calib.arrays import Array
from int8calib.levels import LEVELS

BLOCK = 1 << 15
"""Values dealt with at a time (128 KiB of float32)."""
SIGNED, UNSIGNED = (-LEVELS, LEVELS), (0, 2 * LEVELS)
"""The levels of a blob, and of one that is stored with an offset, counted from its zero."""
_SIGN, _HALF = np.uint32(1 << 31), np.float32(0.5).view(np.uint32)
"""The bits of a float32 that are its sign, and that are 0.5."""


def quantize(
    values: Array,
    scale: np.float32,
    levels: Array,
    limits: tuple[int, int] = SIGNED,
) -> None:
    """Write round(value * scale), half away from zero, clamped to `limits`, into `levels`.

    0.5 is added in float32 before the fraction is cut off, so 0.49999997 gives 1. Plain C and ARM
    would give 0 there; the value is met often enough to show in a comparison on x86.
    Source: float2int8 in ncnn's src/layer/x86/x86_usability.h.

    Parameters
    ----------
    values
        float32, contiguous.
    scale
        Levels per unit of the values.
    levels
        float32, contiguous, of the size of `values`: the result, whole numbers.
    limits
        The smallest and the largest level.
    """
    source, target = values.reshape(-1), levels.reshape(-1)
    away = np.empty(min(BLOCK, source.size), np.float32)
    with np.errstate(over="ignore"):  # infinity is clamped as any other value
        for first in range(0, source.size, BLOCK):
            part = target[first : first + BLOCK]
            half = away[: part.size]
            np.multiply(source[first : first + BLOCK], scale, out=part)
            # 0.5 with the sign of the value, by its bits: a third of the time of copysign.
            bits = half.view(np.uint32)
            np.bitwise_and(part.view(np.uint32), _SIGN, out=bits)
            np.bitwise_or(bits, _HALF, out=bits)
            np.add(part, half, out=part)
            np.trunc(part, out=part)
            np.clip(part, *limits, out=part)


def to_levels(values: Array, scale: float, levels: Array, *, unsigned: bool = False) -> np.float32:
    """Write the levels of a blob's values into `levels`; return how many stand for one unit.

    Parameters
    ----------
    values, levels
        float32, contiguous, of one size.
    scale
        127 over the threshold.
    unsigned
        Whether values are rounded to 0..254 in place of -127..127, to steps of half the size.
    """
    per_unit: np.float32 = np.float32(2 * scale if unsigned else scale)
    quantize(values, per_unit, levels, UNSIGNED if unsigned else SIGNED)
    return per_unit


def quantize_dequantize(values: Array, scale: float, *, unsigned: bool = False) -> Array:
    """Return values as INT8 has them, back in their own unit; parameters as of `to_levels`."""
    levels = np.empty(values.shape, np.float32)
    per_unit = to_levels(values, scale, levels, unsigned=unsigned)
    levels /= per_unit
    return levels


def dequantize(sums: Array, factors: Array, bias: Array) -> None:
    """Replace sums by sum * factor + bias of their row, rounded once.

    ncnn's kernels use fused multiply-add there. A product of two float32 is exact in float64, so
    rounding the float64 sum to float32 gives the same but for one case in 2**29.
    Source: ncnn's src/layer/dequantize.cpp and src/layer/x86/dequantize_x86.cpp.

    Parameters
    ----------
    sums
        float32 (rows, values): sums of levels in, values out.
    factors, bias
        float32 (rows,).
    """
    rows, values = sums.shape
    step = max(1, BLOCK // max(values, 1))
    wide_factors = factors.astype(np.float64).reshape(-1, 1)
    wide_bias = bias.astype(np.float64).reshape(-1, 1)
    wide = np.empty((min(step, rows), values), np.float64)
    for first in range(0, rows, step):
        part = sums[first : first + step]
        block = wide[: len(part)]
        np.copyto(block, part)
        np.multiply(block, wide_factors[first : first + step], out=block)
        np.add(block, wide_bias[first : first + step], out=block)
        np.copyto(part, block, casting="same_kind")
