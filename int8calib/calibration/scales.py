"""Weight scales: one for each row of a quantized layer's weights.

A scale is levels / threshold, with 127 levels for 8-bit weights and 31 for 6-bit ones. Bottom
scales are the same division, done where thresholds become table rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from int8calib.arrays import Array
from int8calib.calibration.layers import QuantLayer, WeightClips
from int8calib.errors import OptionError
from int8calib.levels import LEVELS, WINOGRAD_LEVELS

WINOGRAD_SUM = (2**31 - 1) // 576
"""The largest whole sum of an output that comes out of ncnn's int8 winograd F(4,3) unharmed: its
transforms multiply it by 576, in 32 bits. Sums and partial sums in between may wrap around, since
they wrap back. Source: ncnn's src/layer/x86/convolution_3x3_winograd_int8.h and its kin."""
METHODS = ("absmax", "aciq", "mse")
GRANULARITIES = ("per-channel", "per-group", "per-tensor")
DEAD_SCALE = 1.0
"""The scale of a dead row, which ncnn can divide by without making inf or NaN."""
DEAD_ABSMAX = 1e-20
"""Rows of smaller weights count as dead: they add nothing, and 127 over them may overflow."""


@dataclass(frozen=True)
class Grid:
    """The whole numbers that the weights of a row may become.

    Attributes
    ----------
    qmax : int
        They lie within -qmax..qmax.
    row_sum : float
        What their absolute values may add up to.
    """

    qmax: int
    row_sum: float = float("inf")


@dataclass(frozen=True)
class WeightOptions:
    """How weight scales are found.

    Attributes
    ----------
    granularity : str
        ``per-channel``: a scale for each output channel (for each group in grouped layers, as
        ncnn has it); ``per-group``: a scale for each group, so one value for all channels of an
        ungrouped layer; ``per-tensor``: one value for the whole layer. ncnn reads the same
        number of scales in each case; equal ones are repeated.
    method : str or None
        How the clip of a row is found: ``absmax``, ``aciq`` or ``mse``. None: ``absmax``, but in
        a calibration by ``aciq`` also ``aciq``, as ncnn2table does.
    winograd : bool
        Whether layers that ncnn may run by int8 winograd get 6-bit weights. Their levels stay
        within -31..31 by ``absmax`` and ``mse``; ``aciq`` goes beyond, as ncnn2table does.
    six_bit : tuple of str
        Names or patterns of layers that get 6-bit weights in any case.
    dead : float
        Rows whose largest |w| is below this have no weights and get the scale 1.

    Raises
    ------
    OptionError
        For values that mean nothing.
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

    def levels(self, layer: QuantLayer) -> int:
        """Return the levels on each side of zero for the weights of a layer.

        Parameters
        ----------
        layer : QuantLayer

        Returns
        -------
        int
            127, or 31 for 6-bit weights.
        """
        six = self._named_six_bit(layer) or (self.winograd and layer.winograd)
        return WINOGRAD_LEVELS if six else LEVELS

    def grid(self, layer: QuantLayer) -> Grid:
        """Return what the levels of a layer may be, chosen for each row by itself.

        31 levels are what keeps int8 winograd safe whatever the weights. Where the weights are
        known, their sum tells how large an output can become, and 127 levels are mostly safe too.

        Parameters
        ----------
        layer : QuantLayer

        Returns
        -------
        Grid
        """
        if self._named_six_bit(layer):
            return Grid(WINOGRAD_LEVELS)
        if self.winograd and layer.winograd:
            return Grid(LEVELS, WINOGRAD_SUM / LEVELS)
        return Grid(LEVELS)

    def _named_six_bit(self, layer: QuantLayer) -> bool:
        return any(p == layer.name or fnmatchcase(layer.name, p) for p in self.six_bit)

    def whole(self, layer: QuantLayer) -> bool:
        """Return whether one clip serves all weights of a layer.

        Parameters
        ----------
        layer : QuantLayer

        Returns
        -------
        bool
        """
        grouped = layer.kind == "ConvolutionDepthWise"
        return self.granularity == "per-tensor" or (self.granularity == "per-group" and not grouped)


def weight_scales(layer: QuantLayer, options: WeightOptions | None = None) -> Array:
    """Return the weight scales of a layer.

    Parameters
    ----------
    layer : QuantLayer
        A layer with its weights, or what scales need of them.
    options : WeightOptions, optional
        How they are found.

    Returns
    -------
    float32 (layer.rows,)
        Levels over the clip of each row. A row without weights (nothing from `options.dead` up)
        gets 1.0. Source: ncnn's tools/quantize/ncnn2table.cpp (127 / absmax, or 31 / absmax
        under its winograd rule).
    """
    options = options or WeightOptions()
    levels, whole = options.levels(layer), options.whole(layer)
    clips = _clips(layer.clips, options.method or "absmax", levels, whole)
    absmax = layer.clips.absmax
    scales = np.full(clips.shape, DEAD_SCALE, np.float32)
    alive = (absmax.max(keepdims=True) if whole else absmax) >= options.dead
    scales[alive] = np.float32(levels) / clips[alive]
    return np.broadcast_to(scales, (layer.rows,)).copy() if whole else scales


def dead_rows(layer: QuantLayer, options: WeightOptions) -> tuple[int, ...]:
    """Return the indices of the weight rows that hold nothing from `options.dead` up."""
    return tuple(int(i) for i in np.flatnonzero(layer.clips.absmax < options.dead))


def largest_scales(layer: QuantLayer, options: WeightOptions) -> Array | None:
    """Return the largest scales that keep the levels of a layer within its grid.

    Parameters
    ----------
    layer : QuantLayer
        A layer with its weights.
    options : WeightOptions
        How scales are found.

    Returns
    -------
    float32 (layer.rows,) or None
        None where int8 winograd does not limit it. Rounding may add up to a little more than the
        weights do: a percent is left for it.
    """
    if options.levels(layer) != WINOGRAD_LEVELS:
        return None
    grid = options.grid(layer)
    size = np.abs(layer.weight_rows())
    absmax, sums = (np.maximum(part, DEAD_ABSMAX) for part in (size.max(axis=1), size.sum(axis=1)))
    most: Array = np.minimum(grid.qmax / absmax, 1.01 * grid.row_sum / sums)
    return most


def _clips(known: WeightClips, method: str, levels: int, whole: bool) -> Array:
    """The clip of each row, float32 (rows,), or of all at once, (1,)."""
    if method == "mse":
        return known.mse(levels, whole)
    absmax: Array = known.absmax.max(keepdims=True) if whole else known.absmax
    if method == "absmax":
        return absmax
    return _aciq_clips(absmax, known.count * (len(known.absmax) if whole else 1), levels)


def _aciq_clips(absmax: Array, count: int, levels: int) -> Array:
    """ncnn2table's Gaussian clipping of each row, from its absmax and its number of values."""
    from int8calib.calibration.thresholds.aciq import aciq_clip

    bits = 8 if levels == LEVELS else 6
    return np.array([aciq_clip(float(largest), count, bits) for largest in absmax], np.float32)
