"""Choose weight scales and round weights so that a layer's outputs err least.

Rounding each weight to the nearest level is not the best for the layer's outputs: the error of one
weight can be made good by those that see similar values. This is GPTQ (Frantar et al., 2022,
arXiv:2210.17323), which follows optimal brain surgery, and a descent over single weights behind.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.tuning.samples import Moments

BLOCK = 64
DAMPING = 0.01
MAX_DESCENT = 400_000_000
"""Multiply-adds of a sweep up to which the descent is worth its time."""


def nearest(weights: Array, scales: Array, qmax: int) -> Array:
    """Return round(weight x scale), half away from zero, within -qmax..qmax; as float32 levels.

    `weights` (G, M, K), `scales` (G, M).
    """
    scaled = weights * scales[:, :, None]
    away = np.copysign(np.float32(0.5), scaled)
    return np.asarray(np.clip(np.trunc(scaled + away), -qmax, qmax), np.float32)


def best_levels(
    weights: Array, scales: Array, moment: Array, qmax: int, *, sweeps: int = 3
) -> Array:
    """Return levels (G, M, K) with a small error d' H d, where d = levels / scale - weight.

    Never worse than `nearest`, row by row. `moment` is H, (G, K, K).
    """
    plain = nearest(weights, scales, qmax)
    levels = _better(plain, _gptq(weights, scales, moment, qmax), weights, scales, moment)
    if levels.size * levels.shape[2] > MAX_DESCENT:
        return levels
    moved = _descend(levels, weights, scales, moment, qmax, sweeps)
    return _better(levels, moved, weights, scales, moment)


def level_errors(levels: Array, weights: Array, scales: Array, moment: Array) -> Array:
    """Return the error d' H d of each row, (G, M)."""
    return row_errors(levels / scales[:, :, None] - weights, moment)


def row_errors(difference: Array, moment: Array) -> Array:
    """Return d' H d for each row d of `difference` (G, M, K) with H `moment` (G, K, K): (G, M)."""
    return np.asarray(np.einsum("gmk,gmk->gm", np.matmul(difference, moment), difference))


def refit(weights: Array, given: Moments, damping: float) -> Array:
    """Return the weights (G, M, K) whose INT8 outputs are nearest to those of the float columns.

    Ridge regression of W x on z about W: V = W + W C (H + damping)^-1, with C the cross moment.
    """
    inner = _damped(given.covariance, damping)
    right = np.matmul(weights, given.cross).astype(np.float64)
    change = np.linalg.solve(inner, right.transpose(0, 2, 1)).transpose(0, 2, 1)
    return np.asarray(weights + change, np.float32)


def _damped(moment: Array, share: float) -> NDArray[np.float64]:
    """`moment` (G, K, K) with `share` of its mean diagonal added to the diagonal, at least a bit.

    So columns that hardly vary, or too few columns, leave it invertible.
    """
    size = moment.shape[-1]
    mean = np.trace(moment, axis1=1, axis2=2) / size
    added = share * mean + np.finfo(np.float32).tiny
    return np.asarray(moment + added[:, None, None] * np.eye(size), np.float64)


def _better(a: Array, b: Array, weights: Array, scales: Array, moment: Array) -> Array:
    """Each row from `a` or `b`, whichever errs less."""
    better = level_errors(b, weights, scales, moment) < level_errors(a, weights, scales, moment)
    return np.where(better[:, :, None], b, a)


def _gptq(weights: Array, scales: Array, moment: Array, qmax: int) -> Array:
    """Round column by column, the strongest first, and correct those that are still to come."""
    order = np.argsort(-np.diagonal(moment, axis1=1, axis2=2), axis=1)
    sorted_moment = np.take_along_axis(
        np.take_along_axis(moment, order[:, :, None], 1), order[:, None, :], 2
    )
    upper = _inverse_factor(sorted_moment)
    left = np.take_along_axis(weights, order[:, None, :], 2).copy()
    levels = np.empty_like(left)
    size = left.shape[2]
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        errors = np.empty((*left.shape[:2], stop - start), np.float32)
        for k in range(start, stop):
            column = left[:, :, k]
            levels[:, :, k] = nearest(column[:, :, None], scales, qmax)[:, :, 0]
            error = (column - levels[:, :, k] / scales) / upper[:, k, k][:, None]
            left[:, :, k + 1 : stop] -= error[:, :, None] * upper[:, None, k, k + 1 : stop]
            errors[:, :, k - start] = error
        left[:, :, stop:] -= np.matmul(errors, upper[:, start:stop, stop:])
    back = np.argsort(order, axis=1)
    return np.take_along_axis(levels, back[:, None, :], 2)


def _inverse_factor(moment: Array) -> Array:
    """The upper triangular U with U'U = (H + damping)^-1."""
    inverse = np.linalg.inv(_damped(moment, DAMPING))
    return np.ascontiguousarray(np.linalg.cholesky(inverse).transpose(0, 2, 1), np.float32)


def _descend(
    levels: Array, weights: Array, scales: Array, moment: Array, qmax: int, sweeps: int
) -> Array:
    """Move one weight after the other to its best level, the others held."""
    levels = levels.copy()
    difference = levels / scales[:, :, None] - weights
    slope = np.matmul(difference, moment)
    diagonal = np.diagonal(moment, axis1=1, axis2=2)
    for _ in range(sweeps):
        moved = False
        for k in range(levels.shape[2]):
            curve = np.maximum(diagonal[:, k], np.finfo(np.float32).tiny)[:, None]
            best = levels[:, :, k] - slope[:, :, k] / curve * scales
            new = np.clip(np.rint(best), -qmax, qmax)
            step = np.where(diagonal[:, k][:, None] > 0, new - levels[:, :, k], 0)
            rows = np.flatnonzero(step.any(axis=0))
            if rows.size:
                moved = True
                change = (step / scales)[:, rows]
                levels[:, rows, k] += step[:, rows]
                slope[:, rows] += change[:, :, None] * moment[:, None, k, :]
        if not moved:
            break
    return levels
