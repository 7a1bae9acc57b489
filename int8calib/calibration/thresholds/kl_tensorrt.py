"""A blob's histogram in, the threshold of TensorRT's slides out (method `kl-tensorrt`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.cuts import best_middle, whole_range
from int8calib.calibration.thresholds.registry import MethodOptions, Threshold, register_method

if TYPE_CHECKING:
    from int8calib.calibration.statistics.activation import Histogram


@register_method("kl-tensorrt", summary="KL divergence as TensorRT's entropy calibration")
def kl_tensorrt(histogram: Histogram, options: MethodOptions) -> Threshold:
    """Return the threshold of TensorRT's entropy calibration, from the counts c of |x|.

    For each t = 128 .. 2047:

    - reference P: c[i] for i < t, with the outliers c[t:] added to bin t - 1;
    - candidate Q: c[i] for i < t, without the outliers, cut into 128 levels, bin i in level
      i * 128 // t; each level is spread evenly over its filled bins, empty bins stay empty;
    - divergence: sum of P ln(P / Q) after dividing both by their sums, infinite where Q is 0 and
      P is not, which is where bin t - 1 is empty below outliers.

    The first smallest wins, and the threshold is (t + 0.5) bins. Source: S. Migacz, "8-bit
    Inference with TensorRT", GTC 2017. The slides leave open how t bins make 128 levels when 128
    does not divide t: whole bins shared out evenly are this method's choice.

    Where no candidate is finite, as for a blob of one value, nothing is clipped.
    """
    from int8calib.calibration.thresholds.kernels import LEVELS, kl_tensorrt_curve

    counts = histogram.counts
    if not counts[:-1].any():
        return whole_range(histogram)
    return best_middle(histogram, kl_tensorrt_curve(counts.astype("float64")), LEVELS)
