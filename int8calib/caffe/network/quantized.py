"""The layers of a Caffe graph that ncnn runs in INT8, described as calibration asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from int8calib.arrays import Array
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.layers.windows import convolution_windows
from int8calib.caffe.network.graph import CONVOLUTIONS, Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.calibration.layers import QuantLayer
from int8calib.errors import ModelError


@dataclass(frozen=True, eq=False)
class QuantizedLayer(QuantLayer):
    """A `QuantLayer` with the Caffe layer that it describes."""

    layer: Layer = field(kw_only=True, repr=False)

    @property
    def bottom(self) -> Blob:
        """The blob version that is quantized."""
        return self.layer.bottoms[0]


def quantized_layers(graph: Graph) -> tuple[QuantizedLayer, ...]:
    """Describe the layers of a network that ncnn quantizes.

    Parameters
    ----------
    graph
        The network, with or without weights.

    Returns
    -------
    tuple of QuantizedLayer
        In running order, whether or not they can run here; `layers_to_quantize` leaves out those
        that cannot.
    """
    inputs = {top for layer in graph.layers if layer.type in INPUT_TYPES for top in layer.tops}
    described = {
        layer: quantized
        for layer in graph.layers
        if (quantized := quantized_layer(layer)) is not None
    }
    behind, before = _behind_quantized(graph, described), _before_quantized(graph, described)
    return tuple(
        replace(
            layer,
            reads_input=layer.bottom in inputs,
            first=layer.bottom not in behind,
            last=before.isdisjoint(layer.layer.tops),
        )
        for layer in described.values()
    )


def _behind_quantized(graph: Graph, described: dict[Layer, QuantizedLayer]) -> set[Blob]:
    """The blobs that depend on a quantized layer."""
    blobs: set[Blob] = set()
    for layer in graph.layers:
        if layer in described or not blobs.isdisjoint(layer.bottoms):
            blobs.update(layer.tops)
    return blobs


def _before_quantized(graph: Graph, described: dict[Layer, QuantizedLayer]) -> set[Blob]:
    """The blobs that the bottom of a quantized layer depends on, that bottom included."""
    blobs: set[Blob] = set()
    for layer in reversed(graph.layers):
        if not blobs.isdisjoint(layer.tops):
            blobs.update(layer.bottoms)
        if layer in described:
            blobs.add(described[layer].bottom)
    return blobs


def quantized_layer(layer: Layer) -> QuantizedLayer | None:
    """Return one layer as ncnn quantizes it; None where it does not, or its options mean nothing.

    Of the layers around it, which `quantized_layers` looks at, it says nothing.
    """
    try:
        return _quantized(layer)
    except ModelError:
        return None


def sole_layer(layer: Layer) -> QuantizedLayer:
    """Return one layer of `quantized_layers` as it is by itself.

    Raises
    ------
    ModelError
        Where ncnn does not quantize it.
    """
    described = _quantized(layer)
    if described is None:
        raise ModelError(f"{layer.label} is not one that ncnn quantizes")
    return described


def _quantized(layer: Layer) -> QuantizedLayer | None:
    if layer.type == "InnerProduct" and layer.bottoms:
        return QuantizedLayer(
            layer.name,
            "InnerProduct",
            str(layer.bottoms[0]),
            _output_first(layer),
            rows=int(layer.params.inner_product_param.num_output),
            outputs=int(layer.params.inner_product_param.num_output),
            kernel=(1, 1),
            layer=layer,
        )
    if layer.type not in CONVOLUTIONS or len(layer.bottoms) != 1:
        return None
    windows, group = convolution_windows(layer.params.convolution_param), groups(layer.params)
    outputs = int(layer.params.convolution_param.num_output)
    if group < 1 or outputs % group:
        raise ModelError(f"{layer.label}: num_output {outputs} does not divide into {group} groups")
    return QuantizedLayer(
        layer.name,
        "Convolution" if group == 1 else "ConvolutionDepthWise",
        str(layer.bottoms[0]),
        layer.weights[0] if layer.weights else None,
        rows=outputs if group == 1 else group,
        outputs=outputs,
        group=group,
        kernel=windows.kernel,
        stride=windows.stride,
        dilation=windows.dilation,
        layer=layer,
    )


def _output_first(layer: Layer) -> Array | None:
    """The weights of an InnerProduct, output channels first."""
    if not layer.weights:
        return None
    transposed = layer.params.inner_product_param.transpose
    return layer.weights[0].T if transposed else layer.weights[0]
