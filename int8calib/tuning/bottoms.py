"""Sampled columns of all layers that read one blob come in; the blob's threshold goes out.

The threshold is the one with which the layers' outputs err least, each output's error weighed by
its importance. It is one for all, since ncnn requantizes a blob only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from int8calib.arrays import Array
from int8calib.levels import LEVELS
from int8calib.simulation.arithmetic import quantize
from int8calib.tuning.importance import Weighing

COARSE = tuple(float(x) for x in np.geomspace(1.5, 0.13, 15))
STRONGER = ((0.15, 1.2), (0.05, 1.5))
"""Shares of the columns that are made stronger, and how much."""
FINE = tuple(float(x) for x in np.geomspace(0.9, 1.1, 5))


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads the blob, as a matrix product over sampled columns.

    weights
        float32 (G, M, K): its weights in float.
    real, arriving
        float32 (G, K, n): its columns in the float net, and those of the INT8 net before they
        are rounded.
    importance
        (G, M): what a squared error of each output counts.
    """

    weights: Array
    real: Array
    arriving: Array
    importance: Weighing

    def target(self) -> Array:
        """The outputs of the float net without bias, (G, M, n)."""
        return np.asarray(np.matmul(self.weights, self.real))


def unseen(columns: Array, wanted: int) -> Array:
    """`wanted` of `columns` (G, K, n), some of them made stronger (STRONGER).

    Images to come hold larger values than those at hand, the more so where one image gives few
    columns. A threshold that fits only what was seen clips them, which costs much more than the
    rounding it saves. This is a smoothed bootstrap.
    """
    return some(columns, wanted) * strength(wanted)


def strength(count: int) -> Array:
    """What `count` parts of a sample are multiplied with: 1, but for the shares of STRONGER."""
    drawn = np.random.default_rng(0).permutation(count) / count
    factors = np.ones(count, np.float32)
    edge = 0.0
    for share, factor in STRONGER:
        factors[(drawn >= edge) & (drawn < edge + share)] = factor
        edge += share
    return factors


def some(columns: Array, wanted: int) -> Array:
    """`wanted` of `columns` (G, K, n), evenly spread; of fewer some stand there repeatedly."""
    count = columns.shape[2]
    taken = (np.arange(wanted) * max(1.0, count / wanted)).astype(np.intp) % count
    return np.ascontiguousarray(columns[:, :, taken])


def rounded(columns: Array, scale: float) -> Array:
    """`columns` as INT8 has them, back in units of the blob."""
    levels = np.empty(columns.shape, np.float32)
    quantize(columns, np.float32(scale), levels)
    levels /= np.float32(scale)
    return levels


def best_threshold(
    consumers: Sequence[Consumer], absmax: float, also: Iterable[float] = (), most: float = 1.5
) -> float:
    """The threshold with the least summed error of outputs.

    Candidates are shares of `absmax` up to `most`, those in `also`, and some near the best.
    """
    targets = [consumer.target() for consumer in consumers]

    def error(threshold: float) -> float:
        scale = LEVELS / threshold
        return sum(
            weighed(np.matmul(c.weights, rounded(c.arriving, scale)) - t, c.importance)
            for c, t in zip(consumers, targets, strict=True)
        )

    first = {absmax * min(share, most) for share in COARSE} | set(also)
    tried = {t: error(t) for t in first if 0 < t <= absmax * most}
    best = min(tried, key=tried.__getitem__)
    for share in FINE:
        threshold = min(best * share, absmax * most)
        if threshold not in tried:
            tried[threshold] = error(threshold)
    return min(tried, key=tried.__getitem__)


def weighed(outputs: Array, importance: Weighing, *, centered: bool = False) -> float:
    """The mean square over n of `outputs` (G, M, n), or their variance, times `importance`."""
    squares = np.square(outputs).mean(axis=2, dtype=np.float64)
    if centered:
        squares -= np.square(outputs.mean(axis=2, dtype=np.float64))
    return float((squares * importance).sum())
