"""Weights to weight scales: one scale per row of a quantized layer's weights.

A scale is levels / threshold, with 127 levels for 8-bit weights and 31 for 6-bit ones. Bottom
scales are the same division, done where thresholds become table rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import OptionError

if TYPE_CHECKING:
    from int8calib.arrays import Array
    from int8calib.caffe.network.quantized import QuantizedLayer

LEVELS = 127
WINOGRAD_LEVELS = 31
WINOGRAD_SUM = (2**31 - 1) // 576
"""The largest whole sum of an output that comes out of ncnn's int8 winograd F(4,3) unharmed: its
transforms multiply it by 576, in 32 bits. Sums and partial sums in between may wrap around, since
they wrap back. Source: ncnn's src/layer/x86/convolution_3x3_winograd_int8.h and its kin."""
METHODS = ("absmax", "aciq", "mse")
GRANULARITIES = ("per-channel", "per-group", "per-tensor")
_SHARES = np.linspace(0.2, 1.0, 100, dtype=np.float32)[::-1].copy()
DEAD_SCALE = 1.0
"""The scale of a dead row, which ncnn can divide by without making inf or NaN."""
DEAD_ABSMAX = 1e-20
"""Rows of smaller weights count as dead: they add nothing, and 127 over them may overflow."""


class WeightedLayer(Protocol):
    """What the scales of a layer's weights depend on, besides the weights."""

    @property
    def name(self) -> str:
        """The layer's name."""

    @property
    def ncnn_type(self) -> str:
        """Convolution, ConvolutionDepthWise or InnerProduct."""

    @property
    def rows(self) -> int:
        """How many weight scales ncnn reads."""

    @property
    def winograd(self) -> bool:
        """Whether ncnn may run it by int8 winograd."""


@dataclass(frozen=True)
class Grid:
    """The whole numbers that the weights of a row may become.

    They lie within -`most`..`most`, and their absolute values add up to at most `row_sum`.
    """

    most: int
    row_sum: float = float("inf")


@dataclass(frozen=True)
class WeightOptions:
    """How weight scales are found.

    granularity
        `per-channel`: a scale per output channel (per group in grouped layers, as ncnn has it);
        `per-group`: a scale per group, so one value for all channels of an ungrouped layer;
        `per-tensor`: one value for the whole layer. ncnn reads the same number of scales in
        each case; equal ones are repeated.
    method
        how the threshold of a row is found: `absmax`, `aciq` or `mse`. None: `absmax`, but in a
        calibration by `aciq` also `aciq`, as ncnn2table does.
    winograd
        whether layers that ncnn may run by int8 winograd get 6-bit weights (31 levels).
    six_bit
        names or patterns of layers that get 6-bit weights in any case.
    dead
        rows whose largest |w| is below this have no weights and get the scale 1.
    """

    granularity: str = "per-channel"
    method: str | None = None
    winograd: bool = True
    six_bit: tuple[str, ...] = ()
    dead: float = DEAD_ABSMAX

    def __post_init__(self) -> None:
        """Refuse values that mean nothing; raises `OptionError`."""
        if self.granularity not in GRANULARITIES:
            raise OptionError(
                f"weights {self.granularity!r}; expected one of {', '.join(GRANULARITIES)}"
            )
        if self.method is not None and self.method not in METHODS:
            raise OptionError(
                f"weight method {self.method!r}; expected one of {', '.join(METHODS)}"
            )
        if not DEAD_ABSMAX <= self.dead < np.inf:
            raise OptionError(f"dead weights below {self.dead}; expected at least {DEAD_ABSMAX}")

    def levels(self, layer: WeightedLayer) -> int:
        """The quantization levels on each side of zero for the weights of `layer`."""
        six = self._named_six_bit(layer) or (self.winograd and layer.winograd)
        return WINOGRAD_LEVELS if six else LEVELS

    def grid(self, layer: WeightedLayer) -> Grid:
        """What the levels of `layer` may be where they are chosen for each row by itself.

        31 levels are what keeps int8 winograd safe whatever the weights. Where the weights are
        known, their sum tells how large an output can become, and 127 levels are mostly safe too.
        """
        if self._named_six_bit(layer):
            return Grid(WINOGRAD_LEVELS)
        if self.winograd and layer.winograd:
            return Grid(LEVELS, WINOGRAD_SUM / LEVELS)
        return Grid(LEVELS)

    def _named_six_bit(self, layer: WeightedLayer) -> bool:
        return any(p == layer.name or fnmatchcase(layer.name, p) for p in self.six_bit)

    def whole(self, layer: WeightedLayer) -> bool:
        """Whether one threshold serves all weights of `layer`."""
        grouped = layer.ncnn_type == "ConvolutionDepthWise"
        return self.granularity == "per-tensor" or (self.granularity == "per-group" and not grouped)


@dataclass(frozen=True, eq=False)
class WeightClips:
    """Where the weights of one layer may be clipped: all that its scales need of them.

    `absmax`: float32 (rows,), the largest |w| of each row; `count`: weights in a row;
    `mse(levels, whole)`: the clips with the least squared error, float32 (rows,), or (1,) for
    the layer as a whole.
    """

    absmax: NDArray[np.float32]
    count: int
    mse: Callable[[int, bool], NDArray[np.float32]]

    def find(self, method: str, levels: int, whole: bool) -> NDArray[np.float32]:
        """The clip of each row, float32 (rows,), or of all at once, (1,)."""
        if method == "mse":
            return self.mse(levels, whole)
        absmax = self.absmax.max(keepdims=True) if whole else self.absmax
        if method == "absmax":
            return absmax
        return _aciq(absmax, self.count * (len(self.absmax) if whole else 1), levels)


def weight_clips(layer: QuantizedLayer) -> WeightClips:
    """The clips of a layer whose weights are at hand."""
    rows = layer.weight_rows()
    absmax: Array = np.abs(rows).max(axis=1)

    def mse(levels: int, whole: bool) -> NDArray[np.float32]:
        return _mse(rows.reshape(1, -1) if whole else rows, levels)

    return WeightClips(absmax, rows.shape[1], mse)


def weight_scales(layer: QuantizedLayer, options: WeightOptions | None = None) -> Array:
    """The weight scales of `layer`: float32 of shape (layer.rows,); `scales_of` tells the rest."""
    return scales_of(layer, weight_clips(layer), options or WeightOptions())


def scales_of(layer: WeightedLayer, clips: WeightClips, options: WeightOptions) -> Array:
    """The weight scales of a layer from its clips: float32 of shape (layer.rows,).

    A row without weights (nothing from `options.dead` up) gets 1.0. Source: ncnn's
    tools/quantize/ncnn2table.cpp (127 / absmax, or 31 / absmax under its winograd rule).
    """
    levels, whole = options.levels(layer), options.whole(layer)
    thresholds = clips.find(options.method or "absmax", levels, whole)
    scales = np.full(thresholds.shape, DEAD_SCALE, np.float32)
    alive = (clips.absmax.max(keepdims=True) if whole else clips.absmax) >= options.dead
    scales[alive] = np.float32(levels) / thresholds[alive]
    return np.broadcast_to(scales, (layer.rows,)).copy() if whole else scales


def dead_rows(clips: WeightClips, options: WeightOptions) -> tuple[int, ...]:
    """The indices of the weight rows of a layer that hold nothing from `options.dead` up."""
    return tuple(int(i) for i in np.flatnonzero(clips.absmax < options.dead))


def _aciq(absmax: Array, count: int, levels: int) -> NDArray[np.float32]:
    """ncnn2table's Gaussian clipping of each row, from its absmax and its number of values."""
    from int8calib.calibration.thresholds.aciq import aciq_clip

    bits = 8 if levels == LEVELS else 6
    return np.array([aciq_clip(float(largest), count, bits) for largest in absmax], np.float32)


def _mse(rows: Array, levels: int) -> NDArray[np.float32]:
    """The clip of each row, out of 100 shares of its absmax, with the least squared error."""
    from int8calib.calibration.thresholds.error_kernels import row_clips

    clips = np.empty(len(rows), np.float32)
    row_clips(np.ascontiguousarray(rows).reshape(-1), levels, _SHARES, clips)
    return clips
