"""Method `percentile`: a percentile of the non-zero |x|."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.registry import (
    MethodOptions,
    Threshold,
    register_method,
    whole_range,
)

if TYPE_CHECKING:
    from int8calib.calibration.statistics.histogram import Histogram


@register_method("percentile", summary="keeps a share of the non-zero values, 99.99 % by default")
def percentile(histogram: Histogram, options: MethodOptions) -> Threshold:
    """Return the value below which `options.percentile` percent of the non-zero |x| lie.

    Values count as spread evenly over their bin, so the share clipped is what was asked for.
    Exact zeros, which no threshold harms, are left out: a blob that is nearly all zeros still has
    a threshold above 0. (TensorRT and onnxruntime count them, and so clip more values behind a
    ReLU.) Where all values lie in the last bin nothing is clipped.
    """
    counts, width = histogram.counts, 1.0
    if not counts[:-1].any():
        return whole_range(histogram)
    if histogram.fine is not None:
        # In bins of the histogram, whose end is the absmax.
        width = histogram.fine.bin_width / histogram.absmax * counts.size
        counts = histogram.fine.counts
    running = counts.cumsum()
    wanted = min(int(running[-1]) * options.percentile / 100, int(running[-1]))
    cut = int(running.searchsorted(wanted))
    before = int(running[cut]) - int(counts[cut])
    place = min((cut + (wanted - before) / int(counts[cut])) * width, histogram.positive.size)
    return Threshold(histogram.value_at(place), math.ceil(place))
