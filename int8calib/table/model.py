"""The calibration table as a value: thresholds and weights come in, files go out."""

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

    `absmax` and `threshold` are in units of the blob; `bin` counts histogram bins kept (None
    for methods that do not search bins); `clipped` is the share (0..1) of the non-zero values
    beyond the threshold; `spread` the uncertainty of the threshold as a share of it, None where
    there were too few images to tell.
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
    """One quantized layer's two rows.

    `weight_scales`: float32 of shape (num_output,) or, for grouped layers, (group,); float64
    only where the reference tool's digits must be kept. `bottom_scale`: one float, level count
    (127) over threshold; NaN in a table of the tool-v1 format, which holds no bottom scales.
    `dead_channels`: the indices into `weight_scales` whose weights are all zero; their scale
    is 1.0, and formats that write them otherwise (the tool's 0) find them here. A layer read
    from a table file has no evidence.
    """

    name: str
    weight_scales: NDArray[np.floating[Any]]
    bottom_scale: float
    evidence: BottomEvidence | None = None
    dead_channels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class CalibrationTable:
    """All quantized layers in network order, and blob scales for the formats keyed by blob.

    `blob_scales` maps blob names to scales (127 over threshold) where a format needs every
    blob (may be empty);
    `meta` holds what the report says about the run (JSON values only).
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
