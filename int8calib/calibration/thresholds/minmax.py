"""Method `minmax`: the absmax, so that nothing is clipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.registry import MethodOptions, Threshold, register_method

if TYPE_CHECKING:
    from int8calib.calibration.statistics.histogram import Histogram


@register_method("minmax", summary="the largest |x|: nothing is clipped")
def minmax(histogram: Histogram, options: MethodOptions) -> Threshold:
    """Return the absmax, as the min-max calibrations of TensorRT and onnxruntime do."""
    return Threshold(histogram.absmax, None)
