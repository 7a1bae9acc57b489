"""Method `mse`: the smallest expected squared error of clipping and rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.registry import (
    MethodOptions,
    Threshold,
    register_method,
    whole_range,
)

if TYPE_CHECKING:
    from int8calib.calibration.statistics.histogram import Histogram


@register_method("mse", summary="smallest expected squared error of clipping and rounding")
def mse(histogram: Histogram, options: MethodOptions) -> Threshold:
    """Return the threshold with the smallest expected squared error of the quantized values.

    A value x becomes s min(round(|x| / s), L) with its sign, where L = 2**(bits - 1) - 1 (127)
    and s = T / L is the step of threshold T. For each T of 1 .. 2048 bins, the squared error is
    integrated exactly over every bin, its values taken as spread evenly over it: with n the
    nearest level, the integral of (x - n s)**2 from 0 to x is n s**3 / 12 + (x - n s)**3 / 3, and
    beyond T the error is x - T. So rounding costs s**2 / 12 for bins wider than a step, and what
    it really costs for narrower ones; exact zeros cost nothing.

    The first smallest wins. Where all values lie in the last bin nothing is clipped.

    Counts of one pass are taken in these 2048 bins too. Their finer bins follow where single
    values fall between two levels: over 30 real models and 20 photos that moved the minimum, which
    is flat, by up to 136 bins, for an error that was up to 3 % larger on the exact bins.
    """
    return least_error_threshold(histogram, 2 ** (options.bits - 1) - 1)


def least_error_threshold(histogram: Histogram, levels: int) -> Threshold:
    """Return the threshold of `mse` for so many levels above zero."""
    from int8calib.calibration.thresholds.error_kernels import mse_curve

    counts = histogram.counts
    if not counts[:-1].any():
        return whole_range(histogram)
    kept = int(mse_curve(counts.astype("float64"), levels).argmin()) + 1
    return Threshold(histogram.value_at(kept), kept)
