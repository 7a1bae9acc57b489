"""Weights that are INT8 levels already, put into a quantized layer in place of rounded ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.errors import WeightsError
from int8calib.levels import LEVELS, WINOGRAD_ROW_SUM
from int8calib.ncnn.param import NcnnLayer

CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")


@dataclass(frozen=True, eq=False)
class RoundedWeights:
    """The weights of one layer as INT8 levels that somebody else chose.

    Attributes
    ----------
    levels : array of whole numbers
        Output after output, as many as the layer has weights.
    bias : float32 (num_output,)
        The bias that goes with them.
    weights : float32 array
        The float weights that they stand for, of the same size.
    """

    levels: NDArray[Any]
    bias: Array
    weights: Array


def with_levels(layer: NcnnLayer, given: RoundedWeights, *, winograd: bool) -> NcnnLayer:
    """Put levels and a bias into an INT8 layer that has not been requantized yet.

    Parameters
    ----------
    layer : NcnnLayer
        With levels, bias if it has one, and scales.
    given : RoundedWeights
        What takes the place of its levels and its bias.
    winograd : bool
        Whether ncnn may run it by int8 winograd, if its window allows.

    Raises
    ------
    WeightsError
        For levels of another count, beyond -127..127, or that add up to more than int8 winograd
        holds.
    """
    plain, *rest = layer.weights
    levels = np.asarray(given.levels, np.float64).reshape(-1)
    outputs = layer.integer(0)
    label = f"layer {layer.name!r}"
    if levels.size != plain.size or given.bias.size != outputs:
        raise WeightsError(
            f"{label}: {levels.size} levels and {given.bias.size} biases; it has {plain.size} "
            f"weights and {outputs} outputs"
        )
    if not (np.abs(levels) <= LEVELS).all() or (levels != np.rint(levels)).any():
        raise WeightsError(f"{label}: levels that are no whole numbers within -127..127")
    largest = np.abs(levels.reshape(outputs, -1)).sum(axis=1).max()
    if winograd and _may_run_by_winograd(layer) and largest > WINOGRAD_ROW_SUM:
        raise WeightsError(
            f"{label}: the levels of an output add up to {largest:.0f}; int8 winograd holds "
            f"{WINOGRAD_ROW_SUM}"
        )
    has_bias = "p1" if layer.type == "InnerProduct" else "p5"
    if layer.integer(int(has_bias[1:])):
        del rest[0]
    bias = np.asarray(given.bias, np.float32).reshape(-1)
    weights = (levels.astype(np.int8), bias, *rest)
    return replace(layer.with_params(**{has_bias: 1}), weights=weights)


def _may_run_by_winograd(layer: NcnnLayer) -> bool:
    """Whether a convolution's window is 3x3 of stride 1 without dilation."""
    if layer.type not in CONVOLUTIONS:
        return False
    width = [layer.integer(key, default) for key, default in ((1, 0), (3, 1), (2, 1))]
    return (
        width
        == [layer.integer(key, w) for key, w in zip((11, 13, 12), width, strict=True)]
        == [
            3,
            1,
            1,
        ]
    )
