"""Sampled columns of all layers that read one blob come in; the blob's threshold goes out.

The threshold is the one with which the layers' outputs err least, each output's error weighed by
its importance. It is one for all, since ncnn requantises a blob only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from int8calib.layers.registry import Array
from int8calib.scales import LEVELS
from int8calib.simulation.arithmetic import quantise
from int8calib.tuning.importance import Weighing

COARSE = tuple(float(x) for x in np.geomspace(1.0, 0.12, 13))
FINE = tuple(float(x) for x in np.geomspace(0.9, 1.1, 5))


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads the blob, as a matrix product over sampled columns.

    weights, used
        float32 (G, M, K): its weights in float, and those that INT8 will multiply.
    real, arriving
        float32 (G, K, n): its columns in the float net, and those of the INT8 net before they
        are rounded.
    importance
        (G, M): what a squared error of each output counts.
    centred
        whether a bias will take the mean error of each output.
    """

    weights: Array
    used: Array
    real: Array
    arriving: Array
    importance: Weighing
    centred: bool

    def target(self) -> Array:
        """The outputs of the float net without bias, (G, M, n)."""
        return np.matmul(self.weights, self.real)


def rounded(columns: Array, scale: float) -> Array:
    """`columns` as INT8 has them, back in units of the blob."""
    levels = np.empty(columns.shape, np.float32)
    quantise(columns, np.float32(scale), levels)
    levels /= np.float32(scale)
    return levels


def best_threshold(
    consumers: Sequence[Consumer], absmax: float, also: Iterable[float] = ()
) -> float:
    """The threshold with the least summed error of outputs.

    Candidates are shares of `absmax`, those in `also`, and some near the best of them.
    """
    targets = [consumer.target() for consumer in consumers]

    def error(threshold: float) -> float:
        scale = LEVELS / threshold
        return sum(
            weighed(np.matmul(c.used, rounded(c.arriving, scale)) - t, c.importance, c.centred)
            for c, t in zip(consumers, targets, strict=True)
        )

    tried = {t: error(t) for t in {absmax * share for share in COARSE} | set(also) if t > 0}
    best = min(tried, key=tried.__getitem__)
    for share in FINE:
        threshold = min(best * share, absmax)
        if threshold not in tried:
            tried[threshold] = error(threshold)
    return min(tried, key=tried.__getitem__)


def weighed(outputs: Array, importance: Weighing, centred: bool) -> float:
    """The mean square over n of `outputs` (G, M, n), or their variance, times `importance`."""
    squares = np.square(outputs).mean(axis=2, dtype=np.float64)
    if centred:
        squares -= np.square(outputs.mean(axis=2, dtype=np.float64))
    return float((squares * importance).sum())
