"""Layers that ncnn can run in INT8, described without the framework that they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import MASKED, Array, Shape, is_masked
from int8calib.errors import ModelError, WeightsError
from int8calib.levels import LEVELS, WINOGRAD_ROW_SUM

KINDS = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
_SHARES = np.linspace(0.2, 1.0, 100, dtype=np.float32)[::-1].copy()
"""The clips of a row of weights that are tried, as shares of its absmax."""
_MOST_LEVELS = 5 * LEVELS
"""Levels up to a row's absmax where the smallest of these clips gets 127."""


@dataclass(frozen=True, eq=False)
class WeightClips:
    """Where the weights of one layer may be clipped: all that its weight scales need of them.

    Attributes
    ----------
    absmax : float32 (rows,)
        The largest |w| of each row.
    count : int
        Weights in a row.
    mse : callable
        ``mse(levels, whole)`` gives the clips of least squared error, float32 (rows,), or (1,)
        for the layer as a whole.
    limits : float32 (rows,)
        The largest scale of each row with which int8 winograd is safe; infinite where every
        scale is, or the layer never runs by it.
    """

    absmax: Array
    count: int
    mse: Callable[[int, bool], Array]
    limits: Array

    @classmethod
    def of_rows(cls, rows: Array, limits: Array | None = None) -> WeightClips:
        """Return the clips of weights that are at hand, float32 (rows, values)."""

        def mse(levels: int, whole: bool) -> Array:
            return _mse_clips(rows.reshape(1, -1) if whole else rows, levels)

        if limits is None:
            limits = np.full(len(rows), np.inf, np.float32)
        return cls(np.abs(rows).max(axis=1), rows.shape[1], mse, limits)


def level_sums(weights: Array, scales: Array) -> NDArray[np.float64]:
    """Add up the levels that ncnn makes of the weights of each output.

    Parameters
    ----------
    weights : float32 (rows, outputs, values)
        The weights of each output of each row.
    scales : float32 (rows,)
        The scale of each row.

    Returns
    -------
    float64 (rows,)
        The largest sum of |levels| of an output, by row. int8 winograd gives right results up to
        `WINOGRAD_ROW_SUM`.
    """
    levels = np.abs(weights) * np.asarray(scales, np.float32)[:, None, None]
    levels += np.float32(0.5)
    np.minimum(np.trunc(levels, out=levels), LEVELS, out=levels)
    sums: NDArray[np.float64] = levels.sum(axis=2, dtype=np.float64).max(axis=1)
    return sums


def _winograd_limits(weights: Array) -> Array:
    """The scale of the most whole levels up to a row's absmax with which int8 winograd is safe.

    `weights` (rows, outputs, values). A larger scale never makes a larger level smaller, so the
    most levels are searched by halving, in all rows at once.
    """
    limits = np.full(len(weights), np.inf, np.float32)
    if weights.shape[2] * LEVELS <= WINOGRAD_ROW_SUM:
        return limits
    absmax = np.abs(weights).max(axis=(1, 2))
    alive = np.flatnonzero(absmax > 0)
    rows, largest = weights[alive], absmax[alive]

    def fit(levels: NDArray[np.int64], of: slice | NDArray[np.bool_]) -> NDArray[np.bool_]:
        scales = levels.astype(np.float32) / largest[of]
        return level_sums(rows[of], scales) <= WINOGRAD_ROW_SUM

    low, high = np.ones(len(alive), np.int64), np.full(len(alive), _MOST_LEVELS)
    low[fit(high, slice(None))] = _MOST_LEVELS
    while (left := high - low > 1).any():
        middle = (low + high) // 2
        fits = fit(middle[left], left)
        low[left] = np.where(fits, middle[left], low[left])
        high[left] = np.where(fits, high[left], middle[left])
    limits[alive] = low.astype(np.float32) / largest
    return limits


def _mse_clips(rows: Array, levels: int) -> Array:
    """The clip of each row, out of 100 shares of its absmax, with the least squared error.

    ncnn clamps weights to 127 levels, not to fewer: of 6-bit weights nothing can be clipped, so
    only shares remain with which the absmax still rounds to the last level.
    """
    from int8calib.calibration.thresholds.error_kernels import row_clips

    shares = _SHARES if levels >= LEVELS else _SHARES[levels / _SHARES < levels + 0.5]
    clips = np.empty(len(rows), np.float32)
    row_clips(np.ascontiguousarray(rows).reshape(-1), levels, shares, clips)
    return clips


def _as_array(weights: Any, layer: str) -> NDArray[Any]:
    """Weights as an array; raises `WeightsError` for what is none, or none of numbers."""
    if is_masked(weights):
        raise WeightsError(f"layer {layer!r}: weights in {MASKED}")
    try:
        array = np.asarray(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"layer {layer!r}: weights of type {type(weights).__name__}, of which numpy makes no "
            f"array ({error}); give a numpy array"
        ) from error
    if array.dtype.kind not in "fiu":
        raise WeightsError(
            f"layer {layer!r}: weights of type {array.dtype}; expected an array of floats"
        )
    return array


def _pair(value: Any) -> tuple[int, int] | None:
    """Height and width of a window, of which one number gives both; None for anything else."""
    given = (value, value) if isinstance(value, (int, np.integer)) else value
    if not isinstance(given, (tuple, list, np.ndarray)) or len(given) != 2:
        return None
    if not all(isinstance(each, (int, np.integer)) and each >= 1 for each in given):
        return None
    return int(given[0]), int(given[1])


@dataclass(frozen=True, eq=False)
class QuantLayer:
    """One layer that ncnn can run in INT8.

    Attributes
    ----------
    name : str
        The layer's name, which is its key in the table.
    kind : str
        ``Convolution``, ``ConvolutionDepthWise`` (a convolution of more than one group) or
        ``InnerProduct``, as ncnn names them.
    blob : str
        The key of the blob that it reads, which is the one that is quantized.
    weights : float array (num_output, ...), a function that gives it, or None
        The weights, output channels first. A function is called where they are needed; None
        where only `known_clips` are known.
    outputs : int
        Its num_output; 0 takes it from `weights`, or where these are a function from `rows`.
    rows : int
        How many weight scales ncnn reads: one for each output channel of an ungrouped layer, one
        for each group of a grouped one. 0 takes it from `weights` and `group`.
        Source: ncnn's tools/quantize/ncnn2table.cpp.
    group : int
        Groups of channels; 1 but for ``ConvolutionDepthWise``.
    kernel : (int, int) or None
        Height and width of the window; None takes them from `weights`.
    stride, dilation : (int, int)
        Height and width. One whole number, here as in `kernel`, stands for both.
    reads_input : bool
        Whether `blob` is an input of the network.
    first, last : bool
        Whether no such layer stands before it, or behind it.
    known_clips : WeightClips or None
        What scales need of the weights, where the weights themselves are not at hand.

    Raises
    ------
    ModelError
        Where the parts do not fit each other.
    """

    name: str
    kind: str
    blob: str
    weights: Array | Callable[[], Array] | None = field(default=None, repr=False)
    rows: int = 0
    group: int = 1
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    reads_input: bool = False
    first: bool = False
    last: bool = False
    known_clips: WeightClips | None = field(default=None, repr=False)
    outputs: int = 0

    def __post_init__(self) -> None:
        """Complete `rows` and `kernel`, and refuse parts that do not fit each other."""
        for what, name in (("name", self.name), ("blob", self.blob)):
            if not isinstance(name, str) or not name:
                raise ModelError(f"layer {self.name!r}: {what} {name!r}; expected text")
        if self.kind not in KINDS:
            raise ModelError(
                f"layer {self.name!r}: kind {self.kind!r}; expected one of {', '.join(KINDS)}"
            )
        for what in ("rows", "group", "outputs"):
            if not isinstance(getattr(self, what), (int, np.integer)):
                raise ModelError(
                    f"layer {self.name!r}: {what} {getattr(self, what)!r}; expected a whole number"
                )
        if self.group < 1 or (self.group > 1 and self.kind != "ConvolutionDepthWise"):
            raise ModelError(
                f"layer {self.name!r}: {self.kind} with group {self.group}; a convolution of "
                "several groups is ConvolutionDepthWise, other layers have group 1"
            )
        shape = self._read_weights()
        if not self.rows:
            rows = self.group if self.group > 1 else shape[0] if shape else 0
            object.__setattr__(self, "rows", rows)
        if self.rows < 1:
            raise ModelError(f"layer {self.name!r}: needs its weights, or the number of its rows")
        if not self.outputs:
            object.__setattr__(self, "outputs", shape[0] if shape else self.rows)
        if self.group > 1 and self.outputs % self.group:
            raise ModelError(
                f"layer {self.name!r}: its {self.outputs} outputs make no {self.group} groups"
            )
        self._complete_window(shape)

    def _read_weights(self) -> Shape:
        """Make an array of weights that are at hand, and return its shape, () where none are."""
        if self.weights is None or callable(self.weights):
            return ()
        weights = _as_array(self.weights, self.name)
        object.__setattr__(self, "weights", weights)
        return weights.shape

    def _complete_window(self, shape: Shape) -> None:
        """Make pairs of kernel, stride and dilation; take the kernel from the weights' `shape`."""
        found = (shape[2], shape[3]) if len(shape) == 4 else None
        if self.kind == "InnerProduct":
            found = (1, 1)
        if self.kernel is None and found is None:
            raise ModelError(f"layer {self.name!r}: needs its kernel size, or 4-d weights")
        for what in ("kernel", "stride", "dilation"):
            value = found if what == "kernel" and self.kernel is None else getattr(self, what)
            pair = _pair(value)
            if pair is None:
                raise ModelError(
                    f"layer {self.name!r}: {what} {value!r}; expected height and width, whole "
                    "numbers of at least 1, such as (3, 3)"
                )
            object.__setattr__(self, what, pair)
        if self.kind != "InnerProduct" and found is not None and self.kernel != found:
            raise ModelError(
                f"layer {self.name!r}: kernel {self.kernel} and weights of shape {shape}; those "
                "have (num_output, channels, height, width)"
            )

    @property
    def winograd(self) -> bool:
        """Whether ncnn may run it, or each of its groups, by int8 winograd, by its window."""
        window = (self.kernel, self.stride, self.dilation)
        return self.kind != "InnerProduct" and window == ((3, 3), (1, 1), (1, 1))

    def weight_rows(self, *, finite: bool = True) -> Array:
        """Return the weights as float32 (rows, values), one row for each scale of the table.

        Parameters
        ----------
        finite : bool
            Whether to refuse weights that are NaN or infinite.

        Returns
        -------
        float32 (rows, values)

        Raises
        ------
        WeightsError
            Where there are none, they cannot be cut into the rows, or they are not finite as
            float32.
        """
        weights = self.weights() if callable(self.weights) else self.weights
        if weights is None:
            raise WeightsError(f"layer {self.name!r}: has no weights; give the caffemodel it needs")
        weights = _as_array(weights, self.name)
        count = prod(weights.shape)
        if count == 0 or count % self.rows:
            raise WeightsError(
                f"layer {self.name!r}: weights of shape {weights.shape} make no {self.rows} rows"
            )
        with np.errstate(over="ignore"):
            rows = np.asarray(weights, np.float32).reshape(self.rows, -1)
        wrong = rows.size - np.count_nonzero(np.isfinite(rows))
        if wrong and finite:
            raise WeightsError(
                f"layer {self.name!r}: {wrong} of its {rows.size} weights are NaN or infinite as "
                "float32; expected finite numbers"
            )
        return rows

    def output_rows(self) -> Array:
        """Return the weights by row and output.

        Returns
        -------
        float32 (rows, outputs of a row, values)

        Raises
        ------
        WeightsError
            As `weight_rows`, and where `outputs` does not fit them.
        """
        rows = self.weight_rows()
        outputs = max(self.outputs, self.rows)
        if rows.size % outputs or outputs % self.rows:
            raise WeightsError(
                f"layer {self.name!r}: {rows.size} weights make no {outputs} outputs"
            )
        return rows.reshape(self.rows, outputs // self.rows, -1)

    @cached_property
    def clips(self) -> WeightClips:
        """What its scales need of the weights."""
        if self.known_clips is not None:
            return self.known_clips
        limits = _winograd_limits(self.output_rows()) if self.winograd else None
        return WeightClips.of_rows(self.weight_rows(), limits)
