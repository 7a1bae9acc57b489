"""Weights to weight scales: one scale per row of a quantised layer's weights.

A scale is levels / threshold, with 127 levels for 8-bit weights and 31 for 6-bit ones. Bottom
scales are the same division, done where thresholds become table rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import OptionError
from int8calib.layers.registry import Array
from int8calib.net.quantised import QuantisedLayer

LEVELS = 127
WINOGRAD_LEVELS = 31
GRANULARITIES = ("per-channel", "per-group", "per-tensor")
DEAD_SCALE = 1.0
"""The scale of a dead row, which ncnn can divide by without making inf or NaN."""
DEAD_ABSMAX = 1e-20
"""Rows of smaller weights count as dead: they add nothing, and 127 over them may overflow."""


@dataclass(frozen=True)
class WeightOptions:
    """How weight scales are found.

    granularity
        `per-channel`: a scale per output channel (per group in grouped layers, as ncnn has it);
        `per-group`: a scale per group, so one value for all channels of an ungrouped layer;
        `per-tensor`: one value for the whole layer. ncnn reads the same number of scales in
        each case; equal ones are repeated.
    method
        how the threshold of a row is found: `absmax`, `aciq` or `mse`.
    winograd
        whether layers that ncnn may run by int8 winograd get 6-bit weights (31 levels).
    six_bit
        names or patterns of layers that get 6-bit weights in any case.
    """

    granularity: str = "per-channel"
    method: str = "absmax"
    winograd: bool = True
    six_bit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that mean nothing; raises `OptionError`."""
        if self.granularity not in GRANULARITIES:
            raise OptionError(
                f"weights {self.granularity!r}; expected one of {', '.join(GRANULARITIES)}"
            )
        if self.method not in METHODS:
            raise OptionError(
                f"weight method {self.method!r}; expected one of {', '.join(METHODS)}"
            )

    def levels(self, layer: QuantisedLayer) -> int:
        """The quantisation levels on each side of zero for the weights of `layer`."""
        named = any(fnmatchcase(layer.name, pattern) for pattern in self.six_bit)
        return WINOGRAD_LEVELS if named or (self.winograd and layer.winograd) else LEVELS


def weight_scales(layer: QuantisedLayer, options: WeightOptions | None = None) -> Array:
    """The weight scales of `layer`: float32 of shape (layer.rows,).

    A row of zeros (nothing beyond 1e-20) gets 1.0. Source: ncnn's
    tools/quantize/ncnn2table.cpp (127 / absmax, or 31 / absmax under its winograd rule).
    """
    options = options or WeightOptions()
    rows = layer.weight_rows()
    whole = options.granularity == "per-tensor" or (
        options.granularity == "per-group" and layer.ncnn_type != "ConvolutionDepthWise"
    )
    levels = options.levels(layer)
    thresholds = METHODS[options.method](rows.reshape(1, -1) if whole else rows, levels)
    scales = np.full(thresholds.shape, DEAD_SCALE, np.float32)
    alive = thresholds >= DEAD_ABSMAX
    scales[alive] = np.float32(levels) / thresholds[alive]
    return np.broadcast_to(scales, (layer.rows,)).copy() if whole else scales


def dead_rows(layer: QuantisedLayer) -> tuple[int, ...]:
    """The indices of the weight rows of `layer` that hold nothing beyond 1e-20."""
    absmax = _absmax(layer.weight_rows(), LEVELS)
    return tuple(int(i) for i in np.flatnonzero(absmax < DEAD_ABSMAX))


def _absmax(rows: Array, levels: int) -> NDArray[np.float32]:
    """The largest |w| of each row."""
    absmax: Array = np.abs(rows).max(axis=1)
    return absmax


def _aciq(rows: Array, levels: int) -> NDArray[np.float32]:
    """ncnn2table's Gaussian clipping of each row, from its absmax and its number of values."""
    from int8calib.thresholds.aciq import aciq_clip

    bits = 8 if levels == LEVELS else 6
    clips = [aciq_clip(float(absmax), rows.shape[1], bits) for absmax in _absmax(rows, levels)]
    return np.array(clips, np.float32)


def _mse(rows: Array, levels: int) -> NDArray[np.float32]:
    """The clip of each row, out of 100 shares of its absmax, with the least squared error."""
    absmax = _absmax(rows, levels)
    best = np.full(len(rows), np.inf)
    clips: Array = absmax.copy()
    for share in np.linspace(0.2, 1.0, 100, dtype=np.float32)[::-1]:
        clip = absmax * share
        step = (np.where(clip > 0, clip, 1) / np.float32(levels))[:, None]
        quantised = np.clip(np.rint(rows / step), -levels, levels) * step
        error = np.square(rows - quantised, dtype=np.float64).sum(axis=1)
        better = error < best
        best[better], clips[better] = error[better], clip[better]
    return clips


METHODS: dict[str, Callable[[Array, int], NDArray[np.float32]]] = {
    "absmax": _absmax,
    "aciq": _aciq,
    "mse": _mse,
}
