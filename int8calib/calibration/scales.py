"""Weight scales: one for each row of a quantized layer's weights.

A scale is levels / threshold: 127 levels, fewer where int8 winograd could not hold a row's sum of
levels, or 31 for 6-bit weights. Bottom scales are the same division, done where thresholds become
table rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.calibration.layers import QuantLayer, WeightClips, level_sums
from int8calib.errors import OptionError
from int8calib.levels import LEVELS, WINOGRAD_LEVELS, WINOGRAD_ROW_SUM
from int8calib.limits import check_flag, check_real, name_list

METHODS = ("absmax", "aciq", "mse")
GRANULARITIES = ("per-channel", "per-group", "per-tensor")
WINOGRAD = ("safe", "6bit", "off")
"""What may be done for layers that ncnn may run by int8 winograd."""
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
    winograd : str
        For layers that ncnn may run by int8 winograd (3x3, stride 1). ``safe``: each row gets the
        most levels up to 127 for which its |levels| add up to no more than `WINOGRAD_ROW_SUM`,
        so that no output can overflow, whatever the image. ``6bit``: 31 levels for ungrouped
        ones, as ncnn2table has it; that is safe only up to 105 input channels, and ``aciq`` goes
        beyond 31. ``off``: 127 levels, for programs that switch winograd off.
    any_dilation : bool
        Whether ``6bit`` means dilated windows too, as the reference tool has it.
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
    winograd: str = "safe"
    any_dilation: bool = False
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
        if self.winograd not in WINOGRAD:
            raise OptionError(f"winograd {self.winograd!r}; expected one of {', '.join(WINOGRAD)}")
        check_flag(self.any_dilation, "any_dilation")
        check_real(self.dead, "dead weights below")
        six_bit = name_list(self.six_bit, "six bit", "names or globs of layers")
        object.__setattr__(self, "six_bit", six_bit)
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
        six = self._named_six_bit(layer) or self._six_bit_by_rule(layer)
        return WINOGRAD_LEVELS if six else LEVELS

    def limited(self, layer: QuantLayer) -> bool:
        """Return whether the sum of a row's levels is limited.

        Parameters
        ----------
        layer : QuantLayer

        Returns
        -------
        bool
        """
        return self.winograd == "safe" and layer.winograd

    def grid(self, layer: QuantLayer) -> Grid:
        """Return what the levels of a layer may be, chosen for each row by itself.

        Parameters
        ----------
        layer : QuantLayer

        Returns
        -------
        Grid
        """
        levels = self.levels(layer)
        return Grid(levels, WINOGRAD_ROW_SUM) if self.limited(layer) else Grid(levels)

    def _six_bit_by_rule(self, layer: QuantLayer) -> bool:
        """Whether ncnn2table gives the layer 6 bits, or with `any_dilation` the reference tool."""
        if self.winograd != "6bit" or layer.kind != "Convolution":
            return False
        dilated = self.any_dilation and (layer.kernel, layer.stride) == ((3, 3), (1, 1))
        return layer.winograd or dilated

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
        Levels over the clip of each row, less where the sum of its levels is limited. A row
        without weights (nothing from `options.dead` up) gets 1.0. Source: ncnn's
        tools/quantize/ncnn2table.cpp (127 / absmax, or 31 / absmax under its winograd rule).
    """
    options = options or WeightOptions()
    levels, whole = options.levels(layer), options.whole(layer)
    clips = _clips(layer.clips, options.method or "absmax", levels, whole)
    absmax = layer.clips.absmax
    scales = np.full(clips.shape, DEAD_SCALE, np.float32)
    alive = (absmax.max(keepdims=True) if whole else absmax) >= options.dead
    scales[alive] = np.float32(levels) / clips[alive]
    if options.limited(layer):
        limits = layer.clips.limits
        limits = limits.min(keepdims=True) if whole else limits
        np.minimum(scales, limits, out=scales, where=alive)
    return np.broadcast_to(scales, (layer.rows,)).copy() if whole else scales


def dead_rows(layer: QuantLayer, options: WeightOptions) -> tuple[int, ...]:
    """Return the indices of the weight rows that hold nothing from `options.dead` up."""
    return tuple(int(i) for i in np.flatnonzero(layer.clips.absmax < options.dead))


def unlimited_scales(layer: QuantLayer, options: WeightOptions) -> Array:
    """Return the weight scales of a layer as if int8 winograd held every sum.

    Parameters
    ----------
    layer : QuantLayer
    options : WeightOptions

    Returns
    -------
    float32 (layer.rows,)
        As `weight_scales`. What int8 winograd holds `summed_levels` tells.
    """
    safe = options.winograd == "safe"
    return weight_scales(layer, replace(options, winograd="off") if safe else options)


def summed_levels(
    layer: QuantLayer, options: WeightOptions
) -> Callable[[Array], NDArray[np.float64]] | None:
    """Return what adds up a layer's levels for any scales; None where no sum is limited.

    Parameters
    ----------
    layer : QuantLayer
        A layer with its weights.
    options : WeightOptions

    Returns
    -------
    callable or None
        As `Requirement.level_sums`.
    """
    if options.winograd == "off" or not layer.winograd:
        return None
    return partial(level_sums, layer.output_rows())


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
