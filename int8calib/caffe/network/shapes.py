"""Shapes of all blobs before anything runs: a graph and its input shapes to `{Blob: shape}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import find_type, has_type
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.quantized import QUANTIZED_TYPES
from int8calib.errors import OptionError, ShapeError, UnsupportedLayerError

CHANNEL_KEEPERS = frozenset(
    ("BatchNorm", "Bias", "Dropout", "LRN", "MVN", "Pooling", "Power", "ReLU", "Scale", "Split")
)
"""Types met between an input and its first convolution, with as many channels out as in."""


def infer_shapes(
    graph: Graph, inputs: Mapping[str, Shape], layers: Iterable[Layer] | None = None
) -> dict[Blob, Shape]:
    """The shape of every blob that `layers` (all by default) make from inputs of these shapes.

    With `layers` given, each must have a known type, and a failing shape rule raises `ShapeError`
    with the layer's name. Without, what lies behind a type unknown to the engine is left out.
    """
    shapes: dict[Blob, Shape] = {}
    for layer in graph.layers if layers is None else layers:
        if layer.type in INPUT_TYPES:
            unknown = [top.name for top in layer.tops if top.name not in inputs]
            if unknown and layers is not None:
                raise _unknown_size(graph, unknown[0])
            shapes.update({top: inputs[top.name] for top in layer.tops if top.name in inputs})
        elif layers is None and not (
            has_type(layer.type) and all(bottom in shapes for bottom in layer.bottoms)
        ):
            continue
        else:
            shapes.update(zip(layer.tops, top_shapes(graph, layer, shapes), strict=True))
    return shapes


def top_shapes(graph: Graph, layer: Layer, shapes: Mapping[Blob, Shape]) -> list[Shape]:
    """One layer's top shapes; errors name the prototxt and the layer."""
    try:
        kind = find_type(layer.type)
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(f"{graph.source}: {layer.label}: {error}") from None
    bottoms = [shapes[bottom] for bottom in layer.bottoms]
    try:
        tops = list(kind.shape(layer.params, bottoms))
        if kind.weights is not None and layer.weights:
            _check_weights(layer, bottoms, kind.weights(layer.params, bottoms))
    except (ShapeError, UnsupportedLayerError) as error:
        raise type(error)(f"{graph.source}: {layer.label}: {error}") from None
    except IndexError:
        raise ShapeError(
            f"{graph.source}: {layer.label}: bottoms of shapes {bottoms} are too few, "
            "or have too few axes"
        ) from None
    if len(tops) != len(layer.tops):
        raise ShapeError(
            f"{graph.source}: {layer.label}: has {len(layer.tops)} tops; expected {len(tops)}"
        )
    return tops


def _check_weights(layer: Layer, bottoms: Sequence[Shape], wanted: Sequence[Shape]) -> None:
    """Raise `ShapeError` where bottoms of another size ask for other weights than there are."""
    for blob, shape in zip(layer.weights, wanted, strict=False):
        if blob.shape != tuple(shape):
            raise ShapeError(
                f"bottom of shape {bottoms[0]} asks for weights of shape {tuple(shape)}; "
                f"they have {blob.shape}"
            )


def resolve_inputs(
    graph: Graph,
    given: Mapping[str, Shape] | None = None,
    weights: Mapping[str, tuple[Array, ...]] | None = None,
) -> dict[str, Shape]:
    """A full shape for every input: as given, as in the prototxt, channels from the weights.

    An input that no layer to quantize needs, such as a label, is left out where its size is not
    known. Raises `OptionError` for a shape given to no input, `ShapeError` where the size of one
    that is needed stays unknown.
    """
    given = checked_inputs(graph, given)
    needed = _needed_inputs(graph)
    shapes: dict[str, Shape] = {}
    for name, shape in graph.inputs.items():
        found = given.get(name) or complete_input(graph, name, shape, weights or {})
        if found and min(found) > 0:
            shapes[name] = found
        elif name in needed:
            raise _unknown_size(graph, name, found)
    return shapes


def checked_inputs(graph: Graph, given: Mapping[str, Shape] | None) -> dict[str, Shape]:
    """The shapes given to inputs; raises `OptionError` for one given to something else."""
    for name in given or {}:
        if name not in graph.inputs:
            raise OptionError(
                f"{graph.source}: an input shape is given for {name!r}, "
                f"but the inputs are {', '.join(map(repr, graph.inputs))}"
            )
    return dict(given or {})


def _needed_inputs(graph: Graph) -> set[str]:
    """The inputs that feed layers to quantize; all of them where there is no such layer."""
    heavy = [layer for layer in graph.layers if layer.type in QUANTIZED_TYPES]
    needed = graph.ancestors(bottom for layer in heavy for bottom in layer.bottoms)
    names = {top.name for layer in needed if layer.type in INPUT_TYPES for top in layer.tops}
    return names or set(graph.inputs)


def _unknown_size(graph: Graph, name: str, found: Shape | None = None) -> ShapeError:
    return ShapeError(
        f"{graph.source}: the size of input {name!r} is not in the prototxt "
        f"(found {found}); give it as {name}=1,3,H,W (--input-shape)"
    )


def complete_input(
    graph: Graph, name: str, shape: Shape | None, weights: Mapping[str, tuple[Array, ...]]
) -> Shape | None:
    """`shape` with unknown channels (0) taken from the weights of what reads the input."""
    if not shape or len(shape) != 4 or shape[1] != 0:
        return shape
    readers, blobs = graph.readers(), [Blob(name)]
    for blob in blobs:
        for reader in readers.get(blob, []):
            first = weights.get(reader.name, (None,))[0]
            if reader.type == "Convolution" and first is not None:
                channels = first.shape[1] * reader.params.convolution_param.group
                return (shape[0], channels, *shape[2:])
            if reader.type in CHANNEL_KEEPERS:
                blobs.extend(top for top in reader.tops if top not in blobs)
    return shape


def free_batch(graph: Graph, shapes: Mapping[Blob, Shape]) -> Graph:
    """The graph with Reshape layers that fix the batch size copying it instead.

    A deploy prototxt often writes `dim: 1` (or 10) first; the batch size is the engine's to
    choose, so a first dim equal to the batch the prototxt declares becomes 0.
    """
    return replace(graph, layers=tuple(_free_batch(layer, shapes) for layer in graph.layers))


def _free_batch(layer: Layer, shapes: Mapping[Blob, Shape]) -> Layer:
    ends = (*layer.bottoms[:1], *layer.tops[:1])
    if layer.type != "Reshape" or len(ends) < 2 or any(blob not in shapes for blob in ends):
        return layer
    param = layer.params.reshape_param
    batch = shapes[layer.bottoms[0]][:1]
    if param.axis != 0 or tuple(param.shape.dim[:1]) != batch or not batch:
        return layer
    params = type(layer.params)()
    params.CopyFrom(layer.params)
    params.reshape_param.shape.dim[0] = 0
    return replace(layer, params=params)


def is_batchable(graph: Graph, inputs: Mapping[str, Shape], layers: Iterable[Layer]) -> bool:
    """Whether every blob of `layers` keeps one entry of axis 0 per image of the batch."""
    layers = tuple(layers)
    one, two = ({name: (batch, *shape[1:]) for name, shape in inputs.items()} for batch in (1, 2))
    try:
        single, double = infer_shapes(graph, one, layers), infer_shapes(graph, two, layers)
    except ShapeError:
        return False
    return all(
        double[blob] == (2 * shape[0], *shape[1:]) and shape[0] == 1 if shape else False
        for blob, shape in single.items()
    )


def multiply_adds(graph: Graph, inputs: Mapping[str, Shape]) -> int:
    """Multiply-adds of one forward pass of `graph`, by the layers' own rules."""
    shapes = infer_shapes(graph, inputs)
    return sum(
        layer_multiply_adds(layer, shapes)
        for layer in graph.layers
        if layer.type not in INPUT_TYPES and all(blob in shapes for blob in layer.tops)
    )


def layer_multiply_adds(layer: Layer, shapes: Mapping[Blob, Shape]) -> int:
    """Multiply-adds of one layer whose bottoms and tops have these shapes; 0 for simple types."""
    count = find_type(layer.type).macs
    bottoms, tops = ([shapes[blob] for blob in blobs] for blobs in (layer.bottoms, layer.tops))
    return 0 if count is None else count(layer.params, bottoms, tops)
