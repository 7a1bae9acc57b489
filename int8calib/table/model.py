"""The calibration table as a value: scales of layers and blobs, with their evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    """

    name: str
    weight_scales: NDArray[np.floating[Any]]
    bottom_scale: float
    evidence: BottomEvidence | None = None
    dead_channels: tuple[int, ...] = ()


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
    """

    layers: tuple[LayerScales, ...]
    blob_scales: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __getitem__(self, name: str) -> LayerScales:
        """The rows of the layer `name`; raises KeyError where the layer stays in float."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        """Whether the layer `name` is quantized."""
        return any(layer.name == name for layer in self.layers)
