"""The costs of all candidates in, the threshold of the cheapest one out; shared by the methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8calib.thresholds.registry import Threshold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from int8calib.stats.activation import Histogram


def whole_range(histogram: Histogram) -> Threshold:
    """Return the threshold that clips nothing: the absmax, all bins kept."""
    return Threshold(histogram.absmax, histogram.positive.size)


def cheapest(curve: NDArray[np.float64]) -> int:
    """Return the first index whose cost is the smallest, up to the rounding of the sums.

    Equal costs do occur, for example where several candidates lose nothing; then the last digits,
    which depend on the machine's logarithm, must not decide.
    """
    smallest = float(curve.min())
    return int((curve <= smallest + 1e-12 * max(1.0, smallest)).argmax())


def best_middle(histogram: Histogram, curve: NDArray[np.float64], first: int) -> Threshold:
    """Return the threshold in the middle of the bin before which cutting is cheapest.

    `curve`: costs of the candidates `first`, `first` + 1, ...; where all are infinite nothing is
    clipped. Candidate t keeps t bins and puts the threshold at t + 0.5 of them.
    """
    best = cheapest(curve)
    if curve[best] == float("inf"):
        return whole_range(histogram)
    return Threshold(histogram.value_at(first + best + 0.5), first + best)
