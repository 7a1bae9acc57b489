"""Columns of a layer in float and in INT8 come in; what its output error depends on goes out.

With weights W, the float columns x and the columns z that INT8 really multiplies, the squared
error of outputs V z + b against W x + b0 is a quadratic function of V and b. Its coefficients are
small matrices, so many choices of V can be judged without the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array


@dataclass(frozen=True, eq=False)
class Gram:
    """Second moments over the columns, per group.

    spread
        float32 (G, K, K): covariance of z, shrunk as far as so few columns call for.
    cross
        float32 (G, K, K): covariance of x - z with z.
    mean, mean_shift
        float32 (G, K): mean of z, and of x - z.
    """

    spread: Array
    cross: Array
    mean: Array
    mean_shift: Array

    @property
    def moment(self) -> Array:
        """Float32 (G, K, K): H in the error d' H d of a row whose weights are off by d."""
        return self.spread + self.mean[:, :, None] * self.mean[:, None, :]


def gram_of(real: Array, used: Array) -> Gram:
    """The moments of `used` columns (G, K, n) and of the `real` ones they stand for."""
    count = used.shape[2]
    mean, shift = used.mean(axis=2), (real - used).mean(axis=2)
    centered = used - mean[:, :, None]
    turned = np.ascontiguousarray(centered.transpose(0, 2, 1))
    cross = np.matmul(real - used - shift[:, :, None], turned) / np.float32(count)
    return Gram(_shrunk(np.matmul(centered, turned) / np.float32(count), count), cross, mean, shift)


def _shrunk(spread: Array, count: int) -> Array:
    """A covariance (G, K, K) of `count` columns, drawn towards its diagonal.

    The share is what makes the expected error least for normal values: the sum of the variances
    of the off-diagonal estimates over the sum of their squares. Source: Schaefer and Strimmer,
    Stat. Appl. Genet. Mol. Biol. 4 (2005) 32, target D.
    """
    diagonal = np.diagonal(spread, axis1=1, axis2=2).astype(np.float64)
    squares = np.square(spread).sum(axis=(1, 2), dtype=np.float64) - np.square(diagonal).sum(axis=1)
    products = np.square(diagonal.sum(axis=1)) - np.square(diagonal).sum(axis=1)
    share = np.minimum(1, (products + squares) / (count * np.maximum(squares, 1e-300)))
    result = spread * np.asarray(1 - share, np.float32)[:, None, None]
    places = np.arange(spread.shape[1])
    result[:, places, places] = diagonal
    return np.asarray(result, np.float32)


def row_errors(difference: Array, moment: Array) -> Array:
    """d' H d for each row d of `difference` (G, M, K) with H `moment` (G, K, K): (G, M)."""
    return np.asarray(np.einsum("gmk,gmk->gm", np.matmul(difference, moment), difference))


def damped(moment: Array, share: float) -> NDArray[np.float64]:
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
    inner = damped(gram.spread, damping)
    right = np.matmul(weights, gram.cross).astype(np.float64)
    change = np.linalg.solve(inner, right.transpose(0, 2, 1)).transpose(0, 2, 1)
    return np.asarray(weights + change, np.float32)
