"""The divergences of all candidates in, the best threshold out; shared by the KL methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.registry import Threshold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from int8calib.calibration.statistics.activation import Histogram

_ROUNDING = 1e-13
"""A divergence below this is 0 but for the rounding of its sums."""


def whole_range(histogram: Histogram) -> Threshold:
    """Return the threshold that clips nothing: the absmax, all bins kept."""
    return Threshold(histogram.absmax, histogram.positive.size)


def best_middle(histogram: Histogram, curve: NDArray[np.float64], first: int) -> Threshold:
    """Return the threshold of the smallest divergence, in the middle of a bin.

    `curve`: divergences of the candidates `first`, `first` + 1, ...; candidate t keeps t bins and
    puts the threshold at t + 0.5 of them. The first of equals wins, and all that lose nothing are
    equal; where all are infinite nothing is clipped.
    """
    best = int((curve * (curve > _ROUNDING)).argmin())
    if curve[best] == float("inf"):
        return whole_range(histogram)
    return Threshold(histogram.value_at(first + best + 0.5), first + best)
