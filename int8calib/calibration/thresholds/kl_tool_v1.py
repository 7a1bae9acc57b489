"""A blob's histogram in, the first reference tool's threshold out (method `kl-tool-v1`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.cuts import best_middle, whole_range
from int8calib.calibration.thresholds.registry import MethodOptions, Threshold, register_method

if TYPE_CHECKING:
    from int8calib.calibration.statistics.activation import Histogram


@register_method(
    "kl-tool-v1", summary="KL divergence as the first caffe-int8-convert-tool found it"
)
def kl_tool_v1(histogram: Histogram, options: MethodOptions) -> Threshold:
    """Return the threshold that the first version of caffe-int8-convert-tool finds.

    With p the counts of |x| over their sum, for each t = 128 .. 2047:

    - reference: a[i] = p[i] for i < t, and the tail p[t:] added to a[t - 1];
    - level j = 0 .. 127 sums p over the bins from j t/128 to (j + 1) t/128, edges inside a bin
      cutting it in parts, and divides by the filled bins (p > 0) there, counted by the same
      parts; b[i] = the levels over bin i, weighted by their parts, where p[i] > 0, else 0;
    - divergence: sum of a[i] ln(a[i] / b[i]) over a[i] > 0, infinite where such a b[i] is 0.

    The first smallest wins, and the threshold is (t + 0.5) bins. Where no candidate is finite, as
    for a blob of one value, the tool would keep t = 128; here nothing is clipped.
    """
    from int8calib.calibration.thresholds.kernels import LEVELS, kl_tool_v1_curve

    counts = histogram.counts
    if not counts[:-1].any():
        return whole_range(histogram)
    return best_middle(histogram, kl_tool_v1_curve(counts.astype("float64")), LEVELS)
