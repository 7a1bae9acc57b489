"""Compiled loops of the KL methods: the divergence of each candidate threshold of a blob.

A ``..._curve`` function takes the counts of a blob's values, float64 (bins,), of which one at
least is not 0, and returns one float64 cost per candidate, the first candidate first. It makes
running sums over the bins with numpy; the kernel after it takes differences of these, so that a
candidate costs its 128 levels instead of up to 2048 bins. A running sum has one entry more than
there are bins: entry k sums the bins before bin k. Those of counts are whole numbers, exact in
float64 up to 2**46 values, parts of bins included.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.compiled import kernel

LEVELS = 128
EPSILON = 1e-4
_SHIFT = 7
"""LEVELS is 2 to this power."""
_LN_2 = math.log(2)
_SQRT_HALF = np.int64(np.sqrt(0.5).view(np.int64))
"""The bits of sqrt(1/2) as a float64."""

Doubles = NDArray[np.float64]
_SUMS = "float64[:], float64[:], float64[:]"


def running(terms: Doubles) -> Doubles:
    """Sum up `terms`: entry k of the result sums those before k, so there is one more."""
    return np.concatenate([[0.0], np.cumsum(terms)])


def _information(counts: Doubles) -> Doubles:
    """Running sum of c ln c, for whole numbers c; 0 where c is 0."""
    return running(counts * np.log(np.maximum(counts, 1.0)))


def _curve(costs: Any, counts: Doubles, information: Doubles) -> Doubles:
    """Fill a curve by the kernel `costs`, from running sums over filled bins too."""
    curve = np.empty(counts.size - LEVELS)
    costs(running(counts), running((counts > 0).astype(np.float64)), information, curve)
    return curve


def kl_curve(counts: Doubles) -> Doubles:
    """Compute ncnn2table's divergence for each threshold t = LEVELS .. bins - 1.

    Formula: see `int8calib.calibration.thresholds.kl.kl`. For the arrays see the module.
    """
    a = counts / counts.sum() + EPSILON
    curve = np.empty(counts.size - LEVELS)
    below, weights, b = np.empty(LEVELS + 1), np.empty(2 * LEVELS), np.empty(2 * LEVELS)
    sums = running(counts), running(a), running(a * np.log(a))
    kl_costs(*sums, below, weights, b, curve)
    return curve


@kernel(f"{_SUMS}, out float64[:], out float64[:], out float64[:], out float64[:] ->", reorder=True)
def kl_costs(
    count: Any, mass: Any, information: Any, below: Any, weights: Any, b: Any, curve: Any
) -> None:
    """Fill the curve of `kl_curve`.

    Level j holds the bins from j t / LEVELS to (j + 1) t / LEVELS; a bin cut by that edge belongs
    to both neighbors by its parts.

    Parameters
    ----------
    count, mass, information : float64 (bins + 1,)
        Running sums of the counts, of a = p + EPSILON, and of a ln a.
    below : float64 (LEVELS + 1,)
        Scratch: the counts below each edge.
    weights, b : float64 (2 * LEVELS,)
        Scratch: b of the formula, and the sum of a over the bins that have it. Entry j is the bin
        cut by level j's lower edge, of weight 0 where there is none, and entry LEVELS + j the bins
        wholly inside.
    curve : float64 (bins - LEVELS,)
        The result.

    Notes
    -----
    The loops are made for SIMD: no branches, divisions by LEVELS as shifts, a logarithm of our
    own. With x = m 2**e, m from sqrt(1/2) to sqrt(2), and s = (m - 1) / (m + 1), ln x is
    e ln 2 + 2 (s + s**3/3 + s**5/5 + ...), whose terms up to s**21 tell 16 digits.
    """
    total = count[-1]
    bits = b.view(np.int64)
    for place in range(curve.shape[0]):
        t = np.int64(LEVELS + place)
        for j in range(LEVELS + 1):
            edge = (j * t) >> _SHIFT
            part = (j * t & (LEVELS - 1)) / LEVELS
            below[j] = count[edge] + part * (count[edge + 1] - count[edge])
        share = LEVELS / (t * total)
        for j in range(LEVELS):
            edge = (j * t) >> _SHIFT
            part = (j * t & (LEVELS - 1)) / LEVELS
            first = (j * t + LEVELS - 1) >> _SHIFT
            end = (j * t + t) >> _SHIFT
            level = (below[j + 1] - below[j]) * share
            previous = (below[j] - below[max(j - 1, 0)]) * share
            b[j] = part * previous + (1 - part) * level + EPSILON
            weights[j] = mass[first] - mass[edge]
            b[LEVELS + j] = level + EPSILON
            weights[LEVELS + j] = mass[end] - mass[first]
        tail = (total - count[t]) / total
        weights[2 * LEVELS - 1] += tail
        cross = 0.0
        for i in range(2 * LEVELS):
            power = (bits[i] - _SQRT_HALF) >> np.int64(52)
            bits[i] -= power << np.int64(52)
            cross += weights[i] * power * _LN_2
        for i in range(2 * LEVELS):
            s = (b[i] - 1) / (b[i] + 1)
            z = s * s
            series = 1 / 19 + z / 21
            series = 1 / 15 + z * (1 / 17 + z * series)
            series = 1 / 11 + z * (1 / 13 + z * series)
            series = 1 / 7 + z * (1 / 9 + z * series)
            series = 1 + z * (1 / 3 + z * (1 / 5 + z * series))
            cross += weights[i] * 2 * s * series
        last = mass[t] - mass[t - 1] + tail
        curve[place] = information[t - 1] + last * math.log(last) - cross


def kl_tool_curve(counts: Doubles) -> Doubles:
    """Compute the latest reference tool's divergence for each threshold t = LEVELS .. bins - 1.

    Formula: see `int8calib.calibration.thresholds.kl.kl_tool`.
    """
    return _curve(kl_tool_costs, counts, _information(counts))


@kernel(f"{_SUMS}, out float64[:] ->")
def kl_tool_costs(count: Any, filled: Any, information: Any, curve: Any) -> None:
    """Fill the curve of `kl_tool_curve`.

    Levels are t // LEVELS bins wide, the last takes the rest.

    Parameters
    ----------
    count, filled, information : float64 (bins + 1,)
        Running sums of the counts c, of filled bins, and of c ln c.
    curve : float64 (bins - LEVELS,)
        The result.
    """
    total = count[-1]
    for t in range(LEVELS, LEVELS + curve.shape[0]):
        width = t // LEVELS
        last = total - count[t - 1]
        # The last bin has mass in the reference only: the tool forgets it when it spreads levels.
        empty = t - 1 - filled[t - 1] + (1.0 if last == 0 else 0.0)
        p_sum = total + EPSILON * empty
        q_sum = EPSILON * (t - filled[t - 1])
        cross = information[t - 1]
        if last > 0:
            cross += last * (math.log(last) - math.log(EPSILON))
        for j in range(LEVELS):
            start = j * width
            stop = start + width if j < LEVELS - 1 else t - 1
            bins_filled = filled[stop] - filled[start]
            if bins_filled > 0:
                inside = count[stop] - count[start]
                level = inside if j < LEVELS - 1 else count[t] - count[start]
                cross -= inside * math.log(level / bins_filled)
                q_sum += level
        curve[t - LEVELS] = cross / p_sum + math.log(q_sum / p_sum)


def kl_tool_v1_curve(counts: Doubles) -> Doubles:
    """Compute the first reference tool's divergence for each threshold t = LEVELS .. bins - 1.

    Infinite where bin t - 1 is empty below a tail. Formula: see
    `int8calib.calibration.thresholds.kl.kl_tool_v1`.
    """
    p = counts / counts.sum()
    return _curve(kl_tool_v1_costs, counts, running(p * np.log(np.where(p > 0, p, 1.0))))


@kernel(f"{_SUMS}, out float64[:] ->")
def kl_tool_v1_costs(count: Any, filled: Any, information: Any, curve: Any) -> None:
    """Fill the curve of `kl_tool_v1_curve`.

    Levels as in `kl_costs`, spread over filled bins only.

    Parameters
    ----------
    count, filled, information : float64 (bins + 1,)
        Running sums of the counts, of filled bins, and of p ln p.
    curve : float64 (bins - LEVELS,)
        The result.
    """
    total = count[-1]
    for t in range(LEVELS, LEVELS + curve.shape[0]):
        tail = (total - count[t]) / total
        last = (count[t] - count[t - 1]) / total
        if last == 0 and tail > 0:
            curve[t - LEVELS] = math.inf
            continue
        divergence = information[t - 1]
        if last > 0:
            divergence += (last + tail) * math.log(last + tail)
        edge, part = 0, 0.0
        before, before_filled, level = 0.0, 0.0, 0.0
        for j in range(LEVELS):
            end = (j + 1) * t // LEVELS
            right = ((j + 1) * t % LEVELS) / LEVELS
            below = count[end] + right * (count[end + 1] - count[end])
            below_filled = filled[end] + right * (filled[end + 1] - filled[end])
            previous = level
            weight = below_filled - before_filled
            level = (below - before) / (total * weight) if weight > 0 else 0.0
            if part > 0 and count[edge + 1] > count[edge]:
                shared = part * previous + (1 - part) * level
                divergence -= (count[edge + 1] - count[edge]) / total * math.log(shared)
            first = edge + 1 if part > 0 else edge
            if count[end] > count[first]:
                divergence -= (count[end] - count[first]) / total * math.log(level)
            edge, part, before, before_filled = end, right, below, below_filled
        if tail > 0:
            divergence -= tail * math.log(level)
        curve[t - LEVELS] = divergence


def kl_tensorrt_curve(counts: Doubles) -> Doubles:
    """Compute the divergence of TensorRT's slides for each threshold t = LEVELS .. bins - 1.

    Infinite where bin t - 1 is empty below a tail. Formula: see
    `int8calib.calibration.thresholds.kl.kl_tensorrt`.
    """
    return _curve(kl_tensorrt_costs, counts, _information(counts))


@kernel(f"{_SUMS}, out float64[:] ->")
def kl_tensorrt_costs(count: Any, filled: Any, information: Any, curve: Any) -> None:
    """Fill the curve of `kl_tensorrt_curve`.

    Bin k goes wholly to level k * LEVELS // t.

    Parameters
    ----------
    count, filled, information : float64 (bins + 1,)
        Running sums of the counts c, of filled bins, and of c ln c.
    curve : float64 (bins - LEVELS,)
        The result.
    """
    total = count[-1]
    for t in range(LEVELS, LEVELS + curve.shape[0]):
        tail = total - count[t]
        last = total - count[t - 1]
        if last == tail and tail > 0:
            curve[t - LEVELS] = math.inf
            continue
        cross = information[t - 1]
        if last > 0:
            cross += last * math.log(last)
        log_level = 0.0
        start = 0
        for j in range(LEVELS):
            stop = ((j + 1) * t + LEVELS - 1) // LEVELS
            inside = count[stop] - count[start]
            if inside > 0:
                log_level = math.log(inside / (filled[stop] - filled[start]))
                cross -= inside * log_level
            start = stop
        if tail > 0:
            cross -= tail * log_level
        curve[t - LEVELS] = cross / total + math.log(count[t] / total)
