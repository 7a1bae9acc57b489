"""Solve one layer: weight scales, rounded weights, and if they may change, weights and bias.

Rounding each weight to the nearest level is not the best for the layer's outputs: the error of one
weight can be made good by those that see similar values. This is GPTQ (Frantar et al., 2022,
arXiv:2210.17323), which follows optimal brain surgery, and a descent over single weights behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.calibration.scales import DEAD_ABSMAX, DEAD_SCALE, Grid
from int8calib.rounding.samples import LayerMatrices, Moments, moments

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
    if not sweeps or levels.size * levels.shape[2] > MAX_DESCENT:
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
    """Round column by column, the strongest first, each so that it makes good those before it.

    With H = L L', the error d' H d is the sum of squares of L'd, of which entry k depends on d_k
    and on those behind it alone: from the last column on, each entry is made as small as rounding
    allows. That is GPTQ without an inverse (Babai's nearest plane; Chen et al. 2025,
    arXiv:2507.18553).
    """
    order = np.argsort(np.diagonal(moment, axis1=1, axis2=2), axis=1)
    sorted_moment = np.take_along_axis(
        np.take_along_axis(moment, order[:, :, None], 1), order[:, None, :], 2
    )
    lower = _factor(_damped(sorted_moment, DAMPING))
    steps = lower / np.diagonal(lower, axis1=1, axis2=2)[:, None, :]
    wanted = np.take_along_axis(weights, order[:, None, :], 2)
    levels, off = np.empty_like(wanted), np.empty_like(wanted)
    size = wanted.shape[2]
    for stop in range(size, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        behind = np.matmul(off[:, :, stop:], steps[:, stop:, start:stop])
        for k in range(stop - 1, start - 1, -1):
            shift = behind[:, :, k - start]
            if k + 1 < stop:
                inner = steps[:, k + 1 : stop, k, None]
                shift = shift + np.matmul(off[:, :, k + 1 : stop], inner)[:, :, 0]
            target = wanted[:, :, k] - shift
            levels[:, :, k] = np.clip(np.rint(target * scales), -qmax, qmax)
            off[:, :, k] = levels[:, :, k] / scales - wanted[:, :, k]
    back = np.argsort(order, axis=1)
    return np.take_along_axis(levels, back[:, None, :], 2)


def _factor(moment: NDArray[np.float64]) -> Array:
    """The lower triangular L with LL' = H; in float32 where that is enough."""
    try:
        return np.asarray(np.linalg.cholesky(moment.astype(np.float32)), np.float32)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.cholesky(moment), np.float32)


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


CLIP_SHARES = tuple(float(x) for x in np.linspace(1.0, 0.4, 31))
"""Where weights are clipped, as shares of the largest weight of their row."""
ROOM = 0.97
"""The share of a row's largest sum of levels that plain rounding aims at."""
CHUNKS = 20
"""Parts of the columns, image after image, whose means are compared."""
MAX_INPUTS = 1536
"""Inputs of a layer that are solved together; more are cut into parts, each solved alone."""


@dataclass(frozen=True, eq=False)
class WeightSolution:
    """What the weights of a layer become in INT8.

    Attributes
    ----------
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


def solve_scales(
    matrices: LayerMatrices, float_columns: Array, int8_columns: Array, grid: Grid
) -> WeightSolution:
    """Find the weight scales with which the unchanged weights give the least error of outputs.

    Parameters
    ----------
    matrices
        The layer.
    float_columns, int8_columns
        float32 (G, K, n): columns of the float network, and as INT8 multiplies them.
    grid
        What weights may become.
    """
    parts = _parts(matrices.weights, float_columns, int8_columns)
    return WeightSolution(_table_rows(_best_scales(matrices.weights, parts, grid)), None, None)


def solve_weights(
    matrices: LayerMatrices,
    float_columns: Array,
    int8_columns: Array,
    grid: Grid,
    changes: Changes,
) -> WeightSolution:
    """Find new weights on the grid of new scales, and the bias that goes with them.

    Parameters as in `solve_scales`; `changes` says what may change.
    """
    parts = _parts(matrices.weights, float_columns, int8_columns)
    target = matrices.weights
    if changes.refit:
        target = np.concatenate(
            [refit(target[:, :, part], given, changes.damping) for part, given in parts], axis=2
        )
    scales = _best_scales(target, parts, grid)
    levels = nearest(target, scales, grid.qmax)
    if changes.rounding:
        rounded = [
            best_levels(target[:, :, part], scales, given.second, grid.qmax)
            for part, given in parts
        ]
        levels = within_row_sum(np.concatenate(rounded, axis=2), levels, grid)
    weights = np.asarray(levels / scales[:, :, None], np.float32)
    bias = matrices.bias
    if changes.bias:
        bias = bias + steady_error(matrices.weights, weights, float_columns, int8_columns)
    return WeightSolution(_table_rows(scales), weights, np.asarray(bias, np.float32))


def steady_error(
    weights: Array, changed: Array, float_columns: Array, int8_columns: Array
) -> Array:
    """Return the mean error of each output, (G, M), as far as all images agree on it.

    The estimate is shrunk by its own variance (James and Stein's positive part): a mean that comes
    from a few images with values beyond the threshold would only harm the others.
    """
    count = float_columns.shape[2]
    chunks = min(CHUNKS, count)
    edges = np.linspace(0, count, chunks + 1).astype(int)
    shares = np.zeros((count, chunks), np.float32)
    for i, (a, b) in enumerate(pairwise(edges.tolist())):
        shares[a:b, i] = 1 / (b - a)
    x, z = (np.matmul(c, shares) for c in (float_columns, int8_columns))
    errors = np.matmul(weights, x) - np.matmul(changed, z)
    mean = errors.mean(axis=2)
    doubt = errors.var(axis=2, ddof=1) / chunks if chunks > 1 else np.square(mean)
    kept = np.maximum(0, 1 - doubt / np.maximum(np.square(mean), 1e-30))
    return np.asarray(mean * kept, np.float32)


_Parts = list[tuple[slice, Moments]]
"""Parts of a layer's inputs, each with the moments of its columns."""


def _parts(weights: Array, float_columns: Array, int8_columns: Array) -> _Parts:
    """The parts of a layer's inputs with the moments of their columns."""
    return [
        (part, moments(float_columns[:, part], int8_columns[:, part]))
        for part in input_parts(weights.shape[2])
    ]


def input_parts(size: int) -> list[slice]:
    """Cut so many inputs into parts of at most MAX_INPUTS."""
    count = -(-size // MAX_INPUTS)
    edges = np.linspace(0, size, count + 1).astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]


def _best_scales(weights: Array, parts: _Parts, grid: Grid) -> Array:
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
    second = [(part, given.second) for part, given in parts]
    best = np.zeros_like(safe)
    best_errors = np.full(safe.shape, np.inf, np.float32)
    for share in CLIP_SHARES:
        scales = np.float32(grid.qmax) / (safe * np.float32(share))
        scales = np.asarray(np.minimum(scales, largest), np.float32)
        levels = nearest(weights, scales, grid.qmax)
        errors = np.zeros(safe.shape, np.float32)
        for part, moment in second:
            errors += level_errors(levels[:, :, part], weights[:, :, part], scales, moment)
        if grouped:
            errors = np.broadcast_to(errors.sum(axis=1, keepdims=True), errors.shape)
        better = errors < best_errors
        best, best_errors = np.where(better, scales, best), np.where(better, errors, best_errors)
    return np.asarray(np.where(alive, best, DEAD_SCALE), np.float32)


def within_row_sum(levels: Array, plain: Array, grid: Grid) -> Array:
    """Return `levels`, but `plain` ones in rows that add up to too much."""
    fits = np.abs(levels).sum(axis=2, keepdims=True) <= grid.row_sum
    return np.where(fits, levels, plain)


def _table_rows(scales: Array) -> Array:
    """The scales (G, M) as the table has them: one per output, or per group."""
    return np.ascontiguousarray(scales[:, 0] if len(scales) > 1 else scales[0])
