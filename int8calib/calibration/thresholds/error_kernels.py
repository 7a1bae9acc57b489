"""Compiled loops that search the clip of least squared error, of activations or of weights.

As in `kernels`, numpy makes running sums over the bins and the kernel takes differences of them;
entry k of a running sum is the sum of the bins before bin k.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from int8calib.calibration.thresholds.kernels import Doubles, running
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
    # Squared error of clipping at t: the counts times (middle - t)**2, plus 1/12 for their spread.
    squares = counts * (middles * middles + 1 / 12)
    curve = np.empty(counts.size)
    mse_costs(counts, running(counts), running(counts * middles), running(squares), levels, curve)
    return curve


@kernel("float64[:], float64[:], float64[:], float64[:], int64, out float64[:] ->")
def mse_costs(counts: Any, count: Any, first: Any, second: Any, levels: Any, curve: Any) -> None:
    """Fill the curve of `mse_curve`.

    Level n takes the values from (n - 1/2) steps to (n + 1/2) steps. Of the bins that lie wholly
    between these edges the running sums tell the error; cut bins are integrated.

    Parameters
    ----------
    counts : float64 (bins,)
    count, first, second : float64 (bins + 1,)
        Running sums of the counts' moments 0, 1 and 2.
    levels : int64
        The largest level.
    curve : float64 (bins,)
        The result.
    """
    for t in range(1, 1 + curve.shape[0]):
        clipped = count[-1] - count[t]
        error = second[-1] - second[t] - 2 * t * (first[-1] - first[t]) + t * t * clipped
        step = t / levels
        start, begin = 0.0, 0
        for n in range(levels + 1):
            value = n * step
            stop = (n + 0.5) * step if n < levels else float(t)
            end = int(stop)
            if begin == end:
                right, left = stop - value, start - value
                error += counts[begin] * (right * right * right - left * left * left) / 3
            else:
                right, left = begin + 1 - value, start - value
                error += counts[begin] * (right * right * right - left * left * left) / 3
                inner = begin + 1
                error += (
                    second[end]
                    - second[inner]
                    - 2 * value * (first[end] - first[inner])
                    + value * value * (count[end] - count[inner])
                )
                right, left = stop - value, end - value
                if end < t:
                    error += counts[end] * (right * right * right - left * left * left) / 3
            start, begin = stop, end
        curve[t - 1] = error


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
