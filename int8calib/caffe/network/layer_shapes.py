"""Shapes of one layer: its type's own rule, held against its tops, its weights and the limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from int8calib.arrays import Shape
from int8calib.caffe.layers.registry import find_type
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.errors import ShapeError, UnsupportedLayerError, WeightsError
from int8calib.limits import check_shape
from int8calib.words import listed


def top_shapes(graph: Graph, layer: Layer, shapes: Mapping[Blob, Shape]) -> list[Shape]:
    """Infer the shapes of one layer's tops.

    Parameters
    ----------
    graph
        The network, for its name in messages.
    layer
        A layer of a known type.
    shapes
        At least the shapes of its bottoms.

    Returns
    -------
    list
        A shape for each top, within the limits of `int8calib.limits`.

    Raises
    ------
    ShapeError
        Where the bottoms, or weights that the layer has, do not fit; names prototxt and layer.
    UnsupportedLayerError
        For options that this package does not support.
    """
    try:
        return _top_shapes(layer, [shapes[bottom] for bottom in layer.bottoms])
    except (ShapeError, UnsupportedLayerError) as error:
        raise type(error)(f"{graph.source}: {layer.label}: {error}") from None


def _top_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """The shapes by the type's own rule, held against the tops, the weights and the limits."""
    kind = find_type(layer.type)
    try:
        tops = list(kind.shape(layer.params, bottoms))
        wanted = [] if kind.weights is None else list(kind.weights(layer.params, bottoms))
    except IndexError:
        raise ShapeError(f"{_some(bottoms)} are too few, or have too few axes") from None
    except (ArithmeticError, ValueError) as error:
        # Options of no meaning that a rule does not look at by itself.
        raise ShapeError(f"{_some(bottoms)} do not go with its options ({error})") from None
    if len(tops) != len(layer.tops):
        raise ShapeError(f"has {len(layer.tops)} tops; expected {len(tops)}")
    for top, shape in zip(layer.tops, tops, strict=True):
        check_shape(shape, f"top {top.name!r}")
    for i, shape in enumerate(wanted):
        check_shape(shape, f"weight {i}")
    _check_weights(layer, bottoms, wanted)
    return tops


def _some(bottoms: Sequence[Shape]) -> str:
    """The shapes of bottoms in a message."""
    return f"bottoms of shapes {listed(bottoms)}" if bottoms else "no bottoms"


def _check_weights(layer: Layer, bottoms: Sequence[Shape], wanted: Sequence[Shape]) -> None:
    """Raise `ShapeError` where bottoms of another size ask for other weights than there are."""
    for blob, shape in zip(layer.weights, wanted, strict=False):
        if blob.shape != tuple(shape):
            raise ShapeError(
                f"bottom of shape {bottoms[0]} asks for weights of shape {tuple(shape)}; "
                f"they have {blob.shape}"
            )


def require_weights(graph: Graph, layers: Iterable[Layer], shapes: Mapping[Blob, Shape]) -> None:
    """Raise `WeightsError` where one of `layers`, which are to run, lacks weights that it needs."""
    for layer in layers:
        rule = find_type(layer.type).weights if layer.type not in INPUT_TYPES else None
        wanted = [] if rule is None else rule(layer.params, [shapes[b] for b in layer.bottoms])
        if len(layer.weights) < len(wanted):
            raise WeightsError(
                f"{graph.source}: {layer.label} needs {len(wanted)} blobs of weights and has "
                f"{len(layer.weights)}; load the network with its caffemodel"
            )
