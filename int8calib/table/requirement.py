"""What a network needs of its table: one `Requirement` for each layer that can be INT8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.levels import LEVELS


@dataclass(frozen=True, eq=False)
class Requirement:
    """One layer's demand on the table.

    `name`: the layer; `ncnn_type`: Convolution, ConvolutionDepthWise or InnerProduct;
    `weight_count`: how many weight scales ncnn loads (num_output, or group);
    `weight_scales_folded` and `weight_scales_raw`: shape (weight_count,), the absmax scales of
    the weights with and without BatchNorm folded in, at `levels` levels (127 or 31), None where
    the weights are unknown; `max_scales`: where 31 levels suit int8 winograd whatever the
    weights, the largest scales with which these weights do as well; `folded`: which of the two
    the network will run with; `bottom`: the blob that the layer reads, before any Split, None
    where unknown.
    """

    name: str
    ncnn_type: str
    weight_count: int
    weight_scales_folded: NDArray[np.floating[Any]] | None = None
    weight_scales_raw: NDArray[np.floating[Any]] | None = None
    levels: int = LEVELS
    max_scales: NDArray[np.floating[Any]] | None = None
    folded: bool = True
    bottom: str | None = None
