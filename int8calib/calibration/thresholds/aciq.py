"""Method `aciq`: the clip of a normal distribution, from the absmax and the number of values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from int8calib.calibration.thresholds.registry import MethodOptions, Threshold, register_method
from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.calibration.statistics.histogram import Histogram

_ALPHA = {
    2: 1.71063519,
    3: 2.15159277,
    4: 2.55913646,
    5: 2.93620062,
    6: 3.28691474,
    7: 3.6151146,
    8: 3.92403714,
}
"""Best clip in standard deviations of a normal distribution, by bits (the ACIQ paper's table)."""


def aciq_clip(absmax: float, count: int, bits: int = 8) -> float:
    """Return where to clip normally distributed values.

    alpha[bits] * std, with std = 2 absmax 0.175 (1 + sqrt(pi ln 4)) / sqrt(2 ln count) estimated
    from the range. Source: compute_aciq_gaussian_clip in ncnn's tools/quantize/ncnn2table.cpp;
    R. Banner et al., "Post training 4-bit quantization of convolutional networks for
    rapid-deployment", 2019.

    Parameters
    ----------
    absmax : float
        The largest |x|.
    count : int
        How many values there are.
    bits : int
        Of the quantized values, sign included.

    Returns
    -------
    float
        Beyond the absmax where there are fewer than about 8000 values of 8 bits, as
        ncnn2table's; the absmax for fewer than 2 values, where the estimate has no meaning.

    Raises
    ------
    OptionError
        For bits other than 2 to 8.
    """
    if bits not in _ALPHA:
        raise OptionError(f"bits {bits}, expected a whole number from 2 to 8")
    if count < 2:
        return absmax
    range_factor = 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4)))
    std = absmax * 2 * range_factor / math.sqrt(2 * math.log(count))
    return _ALPHA[bits] * std


@register_method("aciq", summary="the best clip of a normal distribution, as ncnn2table's aciq")
def aciq(histogram: Histogram, options: MethodOptions) -> Threshold:
    """Return `aciq_clip` of the absmax and of the number of values that one image has."""
    return Threshold(aciq_clip(histogram.absmax, histogram.per_image, options.bits), None)
