"""Compiled loops of the threshold stage: one blob's bin counts in, the cost of each cut out.

Every curve kernel returns one float64 cost per candidate; the first smallest one wins. Sums over
bins are differences of running sums, so that a candidate costs its 128 levels instead of up to
2048 bins. Running sums of counts are whole numbers, exact in float64 up to 2**46 values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import float64, int64

from int8calib.stats.kernels import kernel

LEVELS = 128


@kernel(float64[::1](float64[::1]))
def kl_curve(counts: Any) -> Any:
    """Return ncnn2table's divergence for each threshold t = LEVELS .. bins - 1.

    `counts`: float64 (bins,), not all 0. Level j holds the bins from j t / LEVELS to
    (j + 1) t / LEVELS; a bin cut by that edge belongs to both neighbours by its parts. Formula:
    see `int8calib.thresholds.kl`.
    """
    epsilon = 1e-4
    bins = counts.shape[0]
    count = np.zeros(bins + 1)
    mass = np.zeros(bins + 1)
    information = np.zeros(bins + 1)
    for k in range(bins):
        count[k + 1] = count[k] + counts[k]
    total = count[bins]
    for k in range(bins):
        a = counts[k] / total + epsilon
        mass[k + 1] = mass[k] + a
        information[k + 1] = information[k] + a * math.log(a)
    curve = np.empty(bins - LEVELS)
    for t in range(LEVELS, bins):
        tail = (total - count[t]) / total
        last = counts[t - 1] / total + epsilon
        divergence = information[t - 1] + (last + tail) * math.log(last + tail)
        edge, part = 0, 0.0
        before, level = 0.0, 0.0
        for j in range(LEVELS):
            # The level ends `right` of the way through bin `end`.
            end = (j + 1) * t // LEVELS
            right = ((j + 1) * t % LEVELS) / LEVELS
            below = count[end] + (right * counts[end] if right > 0 else 0.0)
            previous = level
            level = (below - before) * LEVELS / (t * total)
            if part > 0:
                shared = part * previous + (1 - part) * level + epsilon
                divergence -= (mass[edge + 1] - mass[edge]) * math.log(shared)
            first = edge + 1 if part > 0 else edge
            divergence -= (mass[end] - mass[first]) * math.log(level + epsilon)
            edge, part, before = end, right, below
        curve[t - LEVELS] = divergence - tail * math.log(level + epsilon)
    return curve


@kernel(float64[::1](float64[::1]))
def kl_tool_curve(counts: Any) -> Any:
    """Return the latest reference tool's divergence for each threshold t = LEVELS .. bins - 1.

    `counts`: float64 (bins,). Levels are t // LEVELS bins wide, the last takes the rest. Formula:
    see `int8calib.thresholds.kl_tool`.
    """
    epsilon = 1e-4
    bins = counts.shape[0]
    count = np.zeros(bins + 1)
    filled = np.zeros(bins + 1)
    information = np.zeros(bins + 1)
    for k in range(bins):
        c = counts[k]
        count[k + 1] = count[k] + c
        filled[k + 1] = filled[k] + (1.0 if c > 0 else 0.0)
        information[k + 1] = information[k] + (c * math.log(c) if c > 0 else 0.0)
    curve = np.empty(bins - LEVELS)
    for t in range(LEVELS, bins):
        width = t // LEVELS
        last = count[bins] - count[t - 1]
        # The last bin has mass in the reference only: the tool forgets it when it spreads levels.
        empty = t - 1 - filled[t - 1] + (1.0 if last == 0 else 0.0)
        p_sum = count[bins] + epsilon * empty
        q_sum = epsilon * (t - filled[t - 1])
        cross = information[t - 1]
        if last > 0:
            cross += last * (math.log(last) - math.log(epsilon))
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
    return curve


@kernel(float64[::1](float64[::1]))
def kl_tool_v1_curve(counts: Any) -> Any:
    """Return the first reference tool's divergence for each threshold t = LEVELS .. bins - 1.

    `counts`: float64 (bins,), not all 0. Levels as in `kl_curve`, spread over filled bins only.
    Infinite where bin t - 1 is empty below a tail. Formula: see `int8calib.thresholds.kl_tool_v1`.
    """
    bins = counts.shape[0]
    count = np.zeros(bins + 1)
    filled = np.zeros(bins + 1)
    information = np.zeros(bins + 1)
    for k in range(bins):
        count[k + 1] = count[k] + counts[k]
    total = count[bins]
    for k in range(bins):
        p = counts[k] / total
        filled[k + 1] = filled[k] + (1.0 if p > 0 else 0.0)
        information[k + 1] = information[k] + (p * math.log(p) if p > 0 else 0.0)
    curve = np.empty(bins - LEVELS)
    for t in range(LEVELS, bins):
        tail = (total - count[t]) / total
        if counts[t - 1] == 0 and tail > 0:
            curve[t - LEVELS] = np.inf
            continue
        last = counts[t - 1] / total + tail
        divergence = information[t - 1] + (last * math.log(last) if last > 0 else 0.0)
        edge, part = 0, 0.0
        before, before_filled, level = 0.0, 0.0, 0.0
        for j in range(LEVELS):
            end = (j + 1) * t // LEVELS
            right = ((j + 1) * t % LEVELS) / LEVELS
            below = count[end]
            below_filled = filled[end]
            if right > 0:
                below += right * counts[end]
                below_filled += right * (filled[end + 1] - filled[end])
            previous = level
            weight = below_filled - before_filled
            level = (below - before) / (total * weight) if weight > 0 else 0.0
            if part > 0 and counts[edge] > 0:
                shared = part * previous + (1 - part) * level
                divergence -= counts[edge] / total * math.log(shared)
            first = edge + 1 if part > 0 else edge
            if count[end] > count[first]:
                divergence -= (count[end] - count[first]) / total * math.log(level)
            edge, part, before, before_filled = end, right, below, below_filled
        if tail > 0:
            divergence -= tail * math.log(level)
        curve[t - LEVELS] = divergence
    return curve


@kernel(float64[::1](float64[::1]))
def kl_tensorrt_curve(counts: Any) -> Any:
    """Return the divergence of TensorRT's slides for each threshold t = LEVELS .. bins - 1.

    `counts`: float64 (bins,), not all 0. Bin k goes wholly to level k * LEVELS // t. Infinite
    where bin t - 1 is empty below a tail. Formula: see `int8calib.thresholds.kl_tensorrt`.
    """
    bins = counts.shape[0]
    count = np.zeros(bins + 1)
    filled = np.zeros(bins + 1)
    information = np.zeros(bins + 1)
    for k in range(bins):
        c = counts[k]
        count[k + 1] = count[k] + c
        filled[k + 1] = filled[k] + (1.0 if c > 0 else 0.0)
        information[k + 1] = information[k] + (c * math.log(c) if c > 0 else 0.0)
    total = count[bins]
    curve = np.empty(bins - LEVELS)
    for t in range(LEVELS, bins):
        tail = total - count[t]
        last = counts[t - 1] + tail
        if counts[t - 1] == 0 and tail > 0:
            curve[t - LEVELS] = np.inf
            continue
        cross = information[t - 1] + (last * math.log(last) if last > 0 else 0.0)
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
    return curve


@kernel(float64[::1](float64[::1], int64))
def mse_curve(counts: Any, levels: Any) -> Any:
    """Return the summed squared error, in bin widths squared, for each threshold t = 1 .. bins.

    `counts`: float64 (bins,); `levels`: the largest level, 127 for 8 bits. The values of a bin
    count as spread evenly over it. Formula: see `int8calib.thresholds.mse`.
    """
    bins = counts.shape[0]
    count = np.zeros(bins + 1)
    first = np.zeros(bins + 1)
    second = np.zeros(bins + 1)
    for k in range(bins):
        middle = k + 0.5
        count[k + 1] = count[k] + counts[k]
        first[k + 1] = first[k] + counts[k] * middle
        second[k + 1] = second[k] + counts[k] * (middle * middle + 1 / 12)
    curve = np.empty(bins)
    for t in range(1, bins + 1):
        clipped = count[bins] - count[t]
        error = second[bins] - second[t] - 2 * t * (first[bins] - first[t]) + t * t * clipped
        step = t / levels
        per_bin = levels / t
        cell = step * step * step / 12
        before = 0.0
        for k in range(t):
            level = np.floor((k + 1) * per_bin + 0.5)
            offset = (k + 1) - level * step
            integral = level * cell + offset * offset * offset / 3
            error += counts[k] * (integral - before)
            before = integral
        curve[t - 1] = error
    return curve
