"""The calibration table as a value, and what a network needs of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import OptionError
from int8calib.levels import LEVELS


@dataclass(frozen=True)
class BottomEvidence:
    """Where a bottom scale comes from.

    Attributes
    ----------
    blob : str
        The key of the blob.
    method : str
        How the threshold was found.
    absmax, threshold : float
        In units of the blob.
    bin : int or None
        Histogram bins kept; None for methods that do not search bins.
    clipped : float
        The share (0..1) of the non-zero values beyond the threshold.
    spread : float or None
        The uncertainty of the threshold as a share of it; None where there were too few images
        to tell.
    """

    blob: str
    method: str
    absmax: float
    threshold: float
    bin: int | None
    clipped: float
    spread: float | None = None


@dataclass(frozen=True, eq=False)
class LayerScales:
    """The scales of one quantized layer: its two rows of a table.

    Attributes
    ----------
    name : str
        The layer.
    weight_scales : float32 (num_output,) or, for grouped layers, (group,)
        Levels over the clip of each row of weights; float64 only where the reference tool's
        digits must be kept.
    bottom_scale : float
        Levels (127) over threshold; NaN in a table of the tool-v1 format, which holds none.
    evidence : BottomEvidence or None
        Where the bottom scale comes from; None for a layer read from a table file.
    dead_channels : tuple of int
        The indices into `weight_scales` whose weights are all zero. Their scale is 1.0; formats
        that write them otherwise (the tool's 0) find them here.
    unsigned : bool
        Whether the bottom is never negative and the INT8 model shall store it with an offset, so
        that it has the levels 0 to 254 below its threshold. A table for ncnn2int8 cannot say so.
    """

    name: str
    weight_scales: NDArray[np.floating[Any]]
    bottom_scale: float
    evidence: BottomEvidence | None = None
    dead_channels: tuple[int, ...] = ()
    unsigned: bool = False

    @property
    def levels_per_unit(self) -> float:
        """What the INT8 model multiplies the bottom with before it is rounded."""
        return self.bottom_scale * (2 if self.unsigned else 1)


@dataclass(frozen=True, eq=False)
class CalibrationTable:
    """All quantized layers in network order, and blob scales for the formats keyed by blob.

    ``table[name]`` are the scales of a layer, and ``name in table`` tells whether there are any.

    Attributes
    ----------
    layers : tuple of LayerScales
        In the order of the network.
    blob_scales : mapping of str to float
        Levels (127) over threshold by blob, where a format needs every blob; may be empty.
    meta : mapping
        What the report says about the run, JSON values.
    weight_rows : mapping of str to float32 (rows,)
        Weight scales of layers that ncnn makes INT8 without a scale of their bottom (Embed,
        MultiHeadAttention, RNN, LSTM, GRU), by the key of the row, ``<layer>_param_<k>``.
    """

    layers: tuple[LayerScales, ...]
    blob_scales: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    weight_rows: Mapping[str, NDArray[np.floating[Any]]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def __getitem__(self, name: str) -> LayerScales:
        """The rows of the layer `name`; raises KeyError where the layer stays in float."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        """Whether the layer `name` is quantized."""
        return any(layer.name == name for layer in self.layers)


def require_table(table: object) -> None:
    """Raise `OptionError` for something that is no `CalibrationTable`, such as a path."""
    if not isinstance(table, CalibrationTable):
        raise OptionError(
            f"the table is of type {type(table).__name__}; expected a CalibrationTable, such as "
            "read_table(path) gives"
        )


def named_tables(
    tables: CalibrationTable | Mapping[str, CalibrationTable],
) -> dict[str, CalibrationTable]:
    """Return tables by name, one alone as ``table``; raises as `require_table`."""
    named = dict(tables) if isinstance(tables, Mapping) else {"table": tables}
    for table in named.values():
        require_table(table)
    return named


@dataclass(frozen=True, eq=False)
class RowRequirement:
    """A weight row that a network needs besides the rows of its `Requirement`s.

    Attributes
    ----------
    key : str
        The key of the row, ``<layer>_param_<k>``.
    ncnn_type : str
        ``Embed``, ``MultiHeadAttention``, ``RNN``, ``LSTM`` or ``GRU``.
    weight_count : int
        How many scales the row has.
    scales : float32 (weight_count,) or None
        127 over the absmax of each row of weights; None where the weights are unknown.
    """

    key: str
    ncnn_type: str
    weight_count: int
    scales: NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True, eq=False)
class Requirement:
    """What a network needs of the table for one layer that can be INT8.

    Attributes
    ----------
    name : str
        The layer.
    ncnn_type : str
        ``Convolution``, ``ConvolutionDepthWise`` or ``InnerProduct``.
    weight_count : int
        How many weight scales ncnn loads: num_output, or group.
    weight_scales_folded, weight_scales_raw : array (weight_count,) or None
        The absmax scales of the weights with and without BatchNorm folded in, at `levels`; None
        where the weights are unknown.
    levels : int
        127, or 31 where 6-bit weights are expected.
    level_sums : callable or None
        ``level_sums(scales)`` gives the largest sum of |levels| of an output of each row with
        these weight scales, float64 (weight_count,): more than `WINOGRAD_ROW_SUM` may overflow.
        None where the weights are unknown, and for layers that never run by int8 winograd.
    caution : str or None
        Why the layer had better stay in float.
    folded : bool
        Which of the two weights the network will run with.
    bottom : str or None
        The blob that the layer reads, before any Split; None where unknown.
    """

    name: str
    ncnn_type: str
    weight_count: int
    weight_scales_folded: NDArray[np.floating[Any]] | None = None
    weight_scales_raw: NDArray[np.floating[Any]] | None = None
    levels: int = LEVELS
    level_sums: Callable[[NDArray[np.floating[Any]]], NDArray[np.floating[Any]]] | None = None
    folded: bool = True
    bottom: str | None = None
    caution: str | None = None
