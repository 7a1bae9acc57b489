"""A blob's histogram in, the latest reference tool's threshold out (method `kl-tool`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.cuts import best_middle, whole_range
from int8calib.calibration.thresholds.registry import MethodOptions, Threshold, register_method

if TYPE_CHECKING:
    from int8calib.calibration.statistics.activation import Histogram


@register_method("kl-tool", summary="KL divergence as the latest caffe-int8-convert-tool finds it")
def kl_tool(histogram: Histogram, options: MethodOptions) -> Threshold:
    """Return the threshold that caffe-int8-convert-tool-dev-weight.py finds, quirks included.

    Only positive values count, and the first bin is dropped: c[i] is the count in bin i + 1. For
    each t = 128 .. 2046:

    - p[i] = c[i] for i < t, and the tail c[t:] added to p[t - 1];
    - levels are w = t // 128 bins wide, the last one takes the rest up to t; each spreads the sum
      of its c evenly over its bins with p > 0. The last level leaves bin t - 1 out of both the
      bins counted and the bins filled;
    - q is what was spread; where p or q is 0 it becomes 1e-4, on raw counts;
    - divergence: sum of P[i] ln(P[i] / Q[i]), with P and Q being p and q over their sums.

    The first smallest wins, and the threshold is (t + 0.5) bins. Use it to repeat an old table;
    for a new one `kl` has none of the quirks.

    Where no positive value lies between the first and the last bin nothing is clipped.
    """
    from int8calib.calibration.thresholds.kernels import LEVELS, kl_tool_curve

    counts = histogram.positive[1:]
    if not counts[:-1].any():
        return whole_range(histogram)
    return best_middle(histogram, kl_tool_curve(counts.astype("float64")), LEVELS)
