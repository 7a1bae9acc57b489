"""The KL methods: the threshold whose quantized histogram lost the least information."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.registry import (
    MethodOptions,
    Threshold,
    register_method,
    whole_range,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from int8calib.calibration.statistics.histogram import Histogram

_ROUNDING = 1e-13
"""A divergence below this is 0 but for the rounding of its sums."""


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
    return _best_threshold(histogram, kl_curve(counts.astype("float64")), LEVELS)


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
    return _best_threshold(histogram, kl_tensorrt_curve(counts.astype("float64")), LEVELS)


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
    return _best_threshold(histogram, kl_tool_curve(counts.astype("float64")), LEVELS)


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
    return _best_threshold(histogram, kl_tool_v1_curve(counts.astype("float64")), LEVELS)


def _best_threshold(histogram: Histogram, curve: NDArray[np.float64], first: int) -> Threshold:
    """Return the threshold of the smallest divergence, in the middle of a bin.

    `curve`: divergences of the candidates `first`, `first` + 1, ...; candidate t keeps t bins and
    puts the threshold at t + 0.5 of them. The first of equals wins, and all that lose nothing are
    equal; where all are infinite nothing is clipped.
    """
    best = int((curve * (curve > _ROUNDING)).argmin())
    if curve[best] == float("inf"):
        return whole_range(histogram)
    return Threshold(histogram.value_at(first + best + 0.5), first + best)
