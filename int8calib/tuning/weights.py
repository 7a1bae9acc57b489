"""A layer's weights and sampled columns come in; its weight scales, and new weights, go out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from int8calib.arrays import Array
from int8calib.calibration.scales import DEAD_ABSMAX, DEAD_SCALE, Grid
from int8calib.tuning.gram import Gram, gram_of, refit
from int8calib.tuning.rounding import best_levels, level_errors, nearest
from int8calib.tuning.samples import Problem

SHARES = tuple(float(x) for x in np.linspace(1.0, 0.4, 31))
"""Where weights are clipped, as shares of the largest weight of their row."""
ROOM = 0.97
"""The share of a row's largest sum of levels that plain rounding aims at."""
CHUNKS = 20
"""Parts of the columns, image after image, whose means are compared."""
LARGEST = 1536
"""Inputs of a layer that are judged together; more are cut into parts, each judged alone."""


@dataclass(frozen=True, eq=False)
class Settled:
    """What a layer will have in INT8.

    scales
        float32 (rows of the table,).
    weights, bias
        float32 (G, M, K), on the grid of levels / scale, and (G, M); None where both stay.
    """

    scales: Array
    weights: Array | None
    bias: Array | None


@dataclass(frozen=True)
class Changes:
    """What may change in a layer: how weights are rounded, their values, the bias.

    `damping`: how strongly a refit holds on to the old weights, a share of the mean variance.
    """

    rounding: bool
    refit: bool
    bias: bool
    damping: float = 8.0

    @property
    def any(self) -> bool:
        """Whether the model changes at all."""
        return self.rounding or self.refit or self.bias


def settle_scales(problem: Problem, real: Array, used: Array, grid: Grid) -> Settled:
    """The weight scales with which the unchanged weights give the least error of outputs.

    `real`, `used`: columns (G, K, n) of the float net, and as INT8 multiplies them.
    """
    parts = _parts(problem.weights, real, used)
    moments = [gram.moment for _, gram in parts]
    scales = _search(problem.weights, [part for part, _ in parts], moments, grid)
    return Settled(_rows(scales), None, None)


def settle_weights(
    problem: Problem, real: Array, used: Array, grid: Grid, changes: Changes
) -> Settled:
    """New weights on the grid of new scales, and the bias that goes with them."""
    parts = _parts(problem.weights, real, used)
    moments = [gram.moment for _, gram in parts]
    goal = problem.weights
    if changes.refit:
        goal = np.concatenate(
            [refit(goal[:, :, part], gram, changes.damping) for part, gram in parts], axis=2
        )
    scales = _search(goal, [part for part, _ in parts], moments, grid)
    if changes.rounding:
        levels = np.concatenate(
            [
                best_levels(goal[:, :, part], scales, moment, grid.qmax)
                for (part, _), moment in zip(parts, moments, strict=True)
            ],
            axis=2,
        )
        levels = _within(levels, nearest(goal, scales, grid.qmax), grid)
    else:
        levels = nearest(goal, scales, grid.qmax)
    weights = np.asarray(levels / scales[:, :, None], np.float32)
    bias = problem.bias
    if changes.bias:
        bias = bias + _steady_error(problem.weights, weights, real, used)
    return Settled(_rows(scales), weights, np.asarray(bias, np.float32))


def _steady_error(weights: Array, changed: Array, real: Array, used: Array) -> Array:
    """The mean error of each output, (G, M), as far as all images agree on it.

    The estimate is shrunk by its own variance (James and Stein's positive part): a mean that comes
    from a few images with values beyond the threshold would only harm the others.
    """
    chunks = min(CHUNKS, real.shape[2])
    edges = np.linspace(0, real.shape[2], chunks + 1).astype(int)[:-1]
    sizes = np.diff([*edges, real.shape[2]])
    x, z = (np.add.reduceat(c, edges, axis=2) / sizes for c in (real, used))
    errors = np.matmul(weights, x) - np.matmul(changed, z)
    mean = errors.mean(axis=2)
    doubt = errors.var(axis=2, ddof=1) / chunks if chunks > 1 else np.square(mean)
    kept = np.maximum(0, 1 - doubt / np.maximum(np.square(mean), 1e-30))
    return np.asarray(mean * kept, np.float32)


def _parts(weights: Array, real: Array, used: Array) -> list[tuple[slice, Gram]]:
    """The inputs, cut into parts of at most LARGEST, each with its moments."""
    size = weights.shape[2]
    count = -(-size // LARGEST)
    edges = np.linspace(0, size, count + 1).astype(int).tolist()
    parts = [slice(a, b) for a, b in pairwise(edges)]
    return [(part, gram_of(real[:, part], used[:, part])) for part in parts]


def _search(weights: Array, parts: list[slice], moments: list[Array], grid: Grid) -> Array:
    """The scale of each row, (G, M), with the least error of plain rounding.

    A grouped layer has one scale per group: ncnn's table holds no more.
    """
    absmax = np.abs(weights).max(axis=2)
    grouped = weights.shape[0] > 1
    if grouped:
        absmax = np.broadcast_to(absmax.max(axis=1, keepdims=True), absmax.shape)
    alive = absmax >= DEAD_ABSMAX
    safe = np.where(alive, absmax, 1)
    # Rounding up and down evens out, so a little room is enough.
    largest = ROOM * grid.row_sum / np.maximum(np.abs(weights).sum(axis=2), DEAD_ABSMAX)
    best = np.zeros_like(safe)
    least = np.full(safe.shape, np.inf, np.float32)
    for share in SHARES:
        scales = np.float32(grid.qmax) / (safe * np.float32(share))
        scales = np.asarray(np.minimum(scales, largest), np.float32)
        levels = nearest(weights, scales, grid.qmax)
        errors = np.zeros(safe.shape, np.float32)
        for part, moment in zip(parts, moments, strict=True):
            errors += level_errors(levels[:, :, part], weights[:, :, part], scales, moment)
        if grouped:
            errors = np.broadcast_to(errors.sum(axis=1, keepdims=True), errors.shape)
        better = errors < least
        best, least = np.where(better, scales, best), np.where(better, errors, least)
    return np.asarray(np.where(alive, best, DEAD_SCALE), np.float32)


def _within(levels: Array, plain: Array, grid: Grid) -> Array:
    """`levels`, but `plain` ones in rows that add up to too much."""
    fits = np.abs(levels).sum(axis=2, keepdims=True) <= grid.row_sum
    return np.where(fits, levels, plain)


def _rows(scales: Array) -> Array:
    """The scales (G, M) as the table has them: one per output, or per group."""
    return np.ascontiguousarray(scales[:, 0] if len(scales) > 1 else scales[0])
