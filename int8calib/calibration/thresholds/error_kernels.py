"""Compiled loops that search the clip of least squared error, of activations or of weights.

numpy makes running sums over the bins, and the kernels look values up in them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from int8calib.calibration.thresholds.kernels import Doubles
from int8calib.compiled import kernel


def mse_curve(counts: Doubles, levels: int) -> Doubles:
    """Sum the squared error for each threshold t = 1 .. bins.

    Parameters
    ----------
    counts : float64 (bins,)
        Values in each bin.
    levels : int
        The largest level, 127 for 8 bits.

    Returns
    -------
    float64 (bins,)
        In squares of a bin's width. Formula: see `int8calib.calibration.thresholds.mse`.
    """
    middles = np.arange(counts.size) + 0.5
    # Each bin's values are spread evenly over it, which adds 1/12 to the square of its middle.
    energy = (counts * (middles * middles + 1 / 12)).sum()
    beyond = np.cumsum(counts[::-1])[::-1]
    excess = np.cumsum((beyond - counts / 2)[::-1])[::-1]
    curve = np.empty(counts.size)
    mse_costs(excess.copy(), beyond.copy(), counts / 2, energy, levels, curve)
    return curve


@kernel("float64[:], float64[:], float64[:], float64, int64, out float64[:] ->")
def mse_costs(excess: Any, beyond: Any, halves: Any, energy: Any, levels: Any, curve: Any) -> None:
    """Fill the curve of `mse_curve`.

    With the step s = t / levels and the level m of a value v, the sum of v - (n + 1/2) s over
    n = 0 .. m - 1 is m v - s m**2 / 2, so (v - m s)**2 is v**2 less 2 s times that sum. Over all
    values, the squared error is their energy less 2 s times the sum over all n of the excess
    E(x) = sum of max(v - x, 0) at x = (n + 1/2) s. Within a bin E is a parabola.

    Parameters
    ----------
    excess : float64 (bins,)
        E at the lower edge of each bin.
    beyond : float64 (bins,)
        Values in each bin and those behind it.
    halves : float64 (bins,)
        Half of the values in each bin.
    energy : float64
        The sum of all values' squares.
    levels : int64
        The largest level.
    curve : float64 (bins,)
        The result.
    """
    for t in range(1, 1 + curve.shape[0]):
        step = t / levels
        total = 0.0
        for n in range(levels):
            x = (n + 0.5) * step
            k = np.uint32(x)  # no place is negative, which a signed one would be checked for
            x -= k
            total += excess[k] + x * (x * halves[k] - beyond[k])
        curve[t - 1] = energy - 2 * step * total


@kernel("float32[:], int64, float32[:], out float32[:] ->")
def row_clips(weights: Any, levels: Any, shares: Any, clips: Any) -> None:
    """Find the clip of each row of weights that has the least squared error.

    With s = clip / levels a weight becomes s min(round(|w| / s), levels) with its sign, halves
    rounded to even. The first of equal clips wins.

    Parameters
    ----------
    weights : float32 (rows * size,)
        The rows one after the other.
    levels : int64
        The largest level.
    shares : float32 (candidates,)
        The clips to try, as shares of a row's largest |w|.
    clips : float32 (rows,)
        The result; 0 for a row of zeros.
    """
    size = weights.shape[0] // clips.shape[0]
    for r in range(clips.shape[0]):
        row = weights[r * size : (r + 1) * size]
        absmax = np.float32(0)
        for i in range(size):
            absmax = max(absmax, abs(row[i]))
        clips[r] = absmax
        if absmax == 0:
            continue
        best = math.inf
        for share in shares:
            step = absmax * share / np.float32(levels)
            error = 0.0
            for i in range(size):
                level = min(np.rint(abs(row[i]) / step), np.float32(levels))
                off = np.float64(abs(row[i]) - level * step)
                error += off * off
            if error < best:
                best = error
                clips[r] = absmax * share
