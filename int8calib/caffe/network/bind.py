"""Weights meet their layers: a graph and `{layer name: blobs}` to a graph with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import find_type, has_type
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.errors import ShapeError, WeightsError


def bind_weights(
    graph: Graph,
    weights: Mapping[str, tuple[Array, ...]],
    shapes: Mapping[Blob, Shape],
    source: str,
) -> Graph:
    """The graph with each layer's blobs from the caffemodel `source`, by layer name.

    A layer that shares parameters by name may take them from the layer that owns them. Raises
    `WeightsError` where blobs are missing or do not have the shape the prototxt asks for; layers
    that only the caffemodel has are listed in `unused_weights`.
    """
    owners = _owners(graph, weights)
    layers = tuple(_bind(graph, layer, weights, owners, shapes, source) for layer in graph.layers)
    names = {layer.name for layer in layers}
    unused = tuple(name for name, blobs in weights.items() if blobs and name not in names)
    return replace(graph, layers=layers, unused_weights=unused)


def _owners(graph: Graph, weights: Mapping[str, tuple[Array, ...]]) -> dict[str, Array]:
    """Blobs by the parameter name (`param { name: ... }`) under which layers share them."""
    table: dict[str, Array] = {}
    for layer in graph.layers:
        for spec, blob in zip(layer.params.param, weights.get(layer.name, ()), strict=False):
            if spec.name:
                table.setdefault(spec.name, blob)
    return table


def _bind(
    graph: Graph,
    layer: Layer,
    weights: Mapping[str, tuple[Array, ...]],
    owners: Mapping[str, Array],
    shapes: Mapping[Blob, Shape],
    source: str,
) -> Layer:
    blobs = weights.get(layer.name, ())
    rule = find_type(layer.type).weights if has_type(layer.type) else None
    if rule is None or any(blob not in shapes for blob in (*layer.bottoms, *layer.tops)):
        return replace(layer, weights=tuple(blobs))
    try:
        wanted = list(rule(layer.params, [shapes[bottom] for bottom in layer.bottoms]))
    except ShapeError as error:
        raise ShapeError(f"{graph.source}: {layer.label}: {error}") from None
    if not blobs:
        shared = [owners.get(spec.name) for spec in layer.params.param[: len(wanted)]]
        blobs = tuple(blob for blob in shared if blob is not None)
    if wanted and not blobs:
        raise WeightsError(
            f"{source}: holds no weights for {layer.label} of {graph.source}; "
            "is it the caffemodel of this prototxt?"
        )
    if len(blobs) < len(wanted):
        raise WeightsError(
            f"{source}: {layer.label} has {len(blobs)} blobs; the prototxt asks for {len(wanted)}"
        )
    fitted = (
        _fit(blob, shape, i, f"{source}: {layer.label}")
        for i, (blob, shape) in enumerate(zip(blobs, wanted, strict=False))
    )
    return replace(layer, weights=(*fitted, *blobs[len(wanted) :]))


def _fit(blob: Array, shape: Shape, index: int, label: str) -> Array:
    """`blob` in `shape`; axes of length 1 may differ, as in the four axes of old caffemodels."""
    if _squeezed(blob.shape) != _squeezed(shape):
        raise WeightsError(
            f"{label}: blob {index} has shape {blob.shape}; the prototxt asks for {shape}"
        )
    return blob.reshape(shape)


def _squeezed(shape: Shape) -> Shape:
    return tuple(dim for dim in shape if dim != 1)
