"""Quantized layers: those that ncnn can run in INT8, and what their table rows need."""

from __future__ import annotations

from dataclasses import dataclass

from int8calib.arrays import Array
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.layers.windows import convolution_windows
from int8calib.caffe.network.graph import CONVOLUTIONS, Blob, Graph, Layer
from int8calib.errors import ModelError, WeightsError


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """One layer that ncnn can run in INT8.

    `ncnn_type` is Convolution, ConvolutionDepthWise or InnerProduct; `bottom` the blob version
    that is quantized; `rows` counts its weight scales; `winograd` says whether ncnn may run it
    by int8 winograd, which needs 6-bit weights.
    """

    layer: Layer
    ncnn_type: str
    bottom: Blob
    rows: int
    winograd: bool

    @property
    def name(self) -> str:
        """The layer's name, which is its key in the table."""
        return self.layer.name

    def weight_rows(self) -> Array:
        """The weights as (rows, values), one row for each scale of the table.

        Raises
        ------
        WeightsError
            Where the layer has none, as one that cannot run may.
        """
        if not self.layer.weights:
            raise WeightsError(f"{self.layer.label} has no weights; give the caffemodel")
        weight = self.layer.weights[0]
        if self.ncnn_type == "InnerProduct" and self.layer.params.inner_product_param.transpose:
            weight = weight.T
        return weight.reshape(self.rows, -1)


def quantized_layers(graph: Graph) -> tuple[QuantizedLayer, ...]:
    """The layers of `graph` that ncnn quantizes, in running order.

    ncnn's table has one scale per output of an ungrouped Convolution or InnerProduct and one per
    group of a grouped Convolution. Source: ncnn's tools/quantize/ncnn2table.cpp.
    """
    found = (quantized_layer(layer) for layer in graph.layers)
    return tuple(layer for layer in found if layer is not None)


def quantized_layer(layer: Layer) -> QuantizedLayer | None:
    """One layer as ncnn quantizes it; None where it does not, or its options mean nothing."""
    try:
        return _quantized(layer)
    except ModelError:
        return None


def _quantized(layer: Layer) -> QuantizedLayer | None:
    if not layer.bottoms:
        return None
    if layer.type == "InnerProduct":
        rows = int(layer.params.inner_product_param.num_output)
        return QuantizedLayer(layer, "InnerProduct", layer.bottoms[0], rows, winograd=False)
    if layer.type not in CONVOLUTIONS or len(layer.bottoms) != 1:
        return None
    param, group = layer.params.convolution_param, groups(layer.params)
    if group != 1:
        return QuantizedLayer(
            layer, "ConvolutionDepthWise", layer.bottoms[0], group, winograd=False
        )
    windows = convolution_windows(param)
    winograd = (windows.kernel, windows.stride, windows.dilation) == ((3, 3), (1, 1), (1, 1))
    return QuantizedLayer(
        layer, "Convolution", layer.bottoms[0], int(param.num_output), winograd=winograd
    )
