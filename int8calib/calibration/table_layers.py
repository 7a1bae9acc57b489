"""Quantized layers come in; what a table needs of each, without the network behind, goes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from int8calib.calibration.scales import WeightClips, weight_clips

# The network is imported where it is used: statistics from a file do without.
if TYPE_CHECKING:
    from int8calib.caffe.network.graph import Graph
    from int8calib.caffe.network.quantized import QuantizedLayer


@dataclass(frozen=True, eq=False)
class TableLayer:
    """One layer that can be INT8, as far as its rows in a table need it.

    `ncnn_type`, `rows`, `winograd`: as in `QuantizedLayer`; `bottom`: the text form of the blob
    version it reads, which keys statistics; `kernel`: the one size of a square convolution
    window, 0 otherwise; `reads_input`: whether `bottom` is an input of the network; `first`,
    `last`: whether no such layer stands before it, behind it; `clips`: what its weights say.
    """

    name: str
    ncnn_type: str
    bottom: str
    rows: int
    winograd: bool
    kernel: int
    reads_input: bool
    first: bool
    last: bool
    clips: WeightClips


def table_layers(graph: Graph, layers: Sequence[QuantizedLayer]) -> tuple[TableLayer, ...]:
    """All quantized `layers` of `graph`, described."""
    from int8calib.caffe.network.inputs import INPUT_TYPES

    names = {layer.name for layer in layers}
    before = {
        layer.name: {a.name for a in graph.ancestors([layer.bottom])} & names for layer in layers
    }
    followed = set().union(*before.values())
    inputs = {top for layer in graph.layers if layer.type in INPUT_TYPES for top in layer.tops}
    return tuple(
        TableLayer(
            name=layer.name,
            ncnn_type=layer.ncnn_type,
            bottom=str(layer.bottom),
            rows=layer.rows,
            winograd=layer.winograd,
            kernel=_kernel(layer),
            reads_input=layer.bottom in inputs,
            first=not before[layer.name],
            last=layer.name not in followed,
            clips=weight_clips(layer),
        )
        for layer in layers
    )


def _kernel(layer: QuantizedLayer) -> int:
    if layer.ncnn_type == "InnerProduct":
        return 0
    from int8calib.caffe.layers.windows import convolution_windows

    height, width = convolution_windows(layer.layer.params.convolution_param).kernel
    return height if height == width else 0
