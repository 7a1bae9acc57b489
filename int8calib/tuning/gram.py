"""Columns of a layer in float and in INT8 come in; what its output error depends on goes out.

With weights W, the float columns x and the columns z that INT8 really multiplies, the squared
error of outputs V z + b against W x + b0 is a quadratic function of V and b. Its coefficients are
small matrices, so many choices of V can be judged without the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from int8calib.layers.registry import Array


@dataclass(frozen=True, eq=False)
class Gram:
    """Second moments over n columns, per group.

    moment
        float32 (G, K, K): mean of z z'.
    cross
        float32 (G, K, K): mean of (x - z) z'.
    mean, mean_shift
        float32 (G, K): mean of z, and of x - z.
    """

    moment: Array
    cross: Array
    mean: Array
    mean_shift: Array

    def centred(self) -> Gram:
        """The same about the means: what is left to lose when a bias takes the mean error."""
        outer = self.mean[:, :, None] * self.mean[:, None, :]
        shift = self.mean_shift[:, :, None] * self.mean[:, None, :]
        return Gram(self.moment - outer, self.cross - shift, self.mean, self.mean_shift)


def gram_of(real: Array, used: Array) -> Gram:
    """The moments of `used` columns (G, K, n) and of the `real` ones they stand for."""
    count = np.float32(1 / real.shape[2])
    turned = np.ascontiguousarray(used.transpose(0, 2, 1))
    shift = real - used
    return Gram(
        np.matmul(used, turned) * count,
        np.matmul(shift, turned) * count,
        used.mean(axis=2),
        shift.mean(axis=2),
    )


def row_errors(difference: Array, moment: Array) -> Array:
    """d' H d for each row d of `difference` (G, M, K) with H `moment` (G, K, K): (G, M)."""
    return np.einsum("gmk,gmk->gm", np.matmul(difference, moment), difference)


def damped(moment: Array, share: float) -> Array:
    """`moment` (G, K, K) with `share` of its mean diagonal added to the diagonal, at least a bit.

    So columns that hardly vary, or too few columns, leave it invertible.
    """
    size = moment.shape[-1]
    mean = np.trace(moment, axis1=1, axis2=2) / size
    added = share * mean + np.finfo(np.float32).tiny
    return np.asarray(moment + added[:, None, None] * np.eye(size), np.float64)


def refit(weights: Array, gram: Gram, damping: float) -> Array:
    """The weights (G, M, K) that on `used` columns give nearest to what they gave on real ones.

    Ridge regression of W x on z about W: V = W + W C (H + damping)^-1, with C the cross moment.
    """
    inner = damped(gram.moment, damping)
    right = np.matmul(weights, gram.cross).astype(np.float64)
    change = np.linalg.solve(inner, right.transpose(0, 2, 1)).transpose(0, 2, 1)
    return np.asarray(weights + change, np.float32)
