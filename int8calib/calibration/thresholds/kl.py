"""A blob's histogram in, ncnn2table's threshold out (method `kl`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.cuts import best_middle, whole_range
from int8calib.calibration.thresholds.registry import MethodOptions, Threshold, register_method

if TYPE_CHECKING:
    from int8calib.calibration.statistics.activation import Histogram


@register_method("kl", summary="smallest KL divergence, as ncnn2table finds it")
def kl(histogram: Histogram, options: MethodOptions) -> Threshold:
    """Return the threshold whose 128 levels lose the least information about |x|.

    With p the counts over their sum and e = 1e-4, for each t = 128 .. 2047:

    - reference: a[i] = p[i] + e for i < t, and the tail p[t:] added to a[t - 1];
    - level j = 0 .. 127 is the mean of p over the bins from j t/128 to (j + 1) t/128, edges
      inside a bin cutting it in parts; b[i] = e + the levels over bin i, weighted by their parts;
    - divergence: sum of a[i] ln(a[i] / b[i]), neither a nor b being normalized again.

    The first smallest wins, and the threshold is (t + 0.5) bins. Source: quantize_KL in ncnn's
    tools/quantize/ncnn2table.cpp. It sums in float32, this in float64: the choice can differ only
    between candidates closer than that rounding, about 1e-7 near the minimum.

    Where all values lie in the last bin, as for a blob of one value, every candidate costs the
    same and ncnn2table would clip to 6 % of that value; here nothing is clipped.
    """
    from int8calib.calibration.thresholds.kernels import LEVELS, kl_curve

    counts = histogram.counts
    if not counts[:-1].any():
        return whole_range(histogram)
    return best_middle(histogram, kl_curve(counts.astype("float64")), LEVELS)
