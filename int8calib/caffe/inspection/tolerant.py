"""Files to a graph, shapes and weights as far as they go; what is wrong becomes a warning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from caffe_proto import NetParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import find_type, has_type
from int8calib.caffe.network.bind import bind_weights
from int8calib.caffe.network.graph import Blob, Graph, Layer, build_graph
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.load import read_files
from int8calib.caffe.network.phase import NetState, included
from int8calib.caffe.network.shapes import checked_inputs, complete_input, free_batch, top_shapes
from int8calib.errors import ShapeError, UnsupportedLayerError, WeightsError

PICTURE_CHANNELS = 3


@dataclass(frozen=True, eq=False)
class Reading:
    """What could be read.

    `shapes` holds the blobs whose shape is known; `weighed` says whether `graph` has the weights
    of a caffemodel: otherwise they are zeros that take no memory, of the shapes the prototxt asks
    for (of size 0 where that cannot be told), so that what folds can be seen. `names` are all
    layer names of the TEST phase.
    """

    graph: Graph
    inputs: Mapping[str, Shape | None]
    shapes: Mapping[Blob, Shape]
    weighed: bool
    names: tuple[str, ...]
    warnings: tuple[str, ...]


def read_tolerantly(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str] | None,
    given: Mapping[str, Shape] | None,
) -> Reading:
    """Everything that can be told of a model; raises `ModelError` only where there is no graph."""
    net, weights = read_files(prototxt, caffemodel)
    graph = build_graph(net, os.fspath(prototxt), unique=False)
    warnings: list[str] = []
    inputs = _inputs(graph, checked_inputs(graph, given), weights or {}, warnings)
    shapes = _shapes(graph, inputs, warnings)
    graph, weighed = _bound(graph, weights, shapes, os.fspath(caffemodel or ""), warnings)
    graph = free_batch(graph, shapes)
    return Reading(graph, inputs, shapes, weighed, _names(net), tuple(warnings))


def _names(net: NetParameter) -> tuple[str, ...]:
    return tuple(layer.name for layer in net.layer if included(layer, NetState()))


def _inputs(
    graph: Graph,
    given: Mapping[str, Shape],
    weights: Mapping[str, tuple[Array, ...]],
    warnings: list[str],
) -> dict[str, Shape | None]:
    """The shape of each input; unknown channels of a picture are taken to be 3."""
    found: dict[str, Shape | None] = {}
    for name, declared in graph.inputs.items():
        shape = given.get(name) or complete_input(graph, name, declared, weights)
        if shape and len(shape) == 4 and shape[1] == 0 and min(shape[2:]) > 0:
            shape = (shape[0], PICTURE_CHANNELS, *shape[2:])
            warnings.append(
                f"input {name}: its channels are not in the prototxt; {PICTURE_CHANNELS} taken"
            )
        if not shape or min(shape) < 1:
            warnings.append(
                f"input {name}: its size is not in the prototxt, so shapes behind it are "
                f"unknown; give it as {name}=1,3,H,W (--input-shape)"
            )
            shape = None
        found[name] = shape
    return found


def _shapes(
    graph: Graph, inputs: Mapping[str, Shape | None], warnings: list[str]
) -> dict[Blob, Shape]:
    """The shapes that follow from the inputs; a layer that cannot take its bottoms ends a path."""
    shapes: dict[Blob, Shape] = {}
    for layer in graph.layers:
        if layer.type in INPUT_TYPES:
            known = {top: inputs[top.name] for top in layer.tops}
            shapes.update({top: shape for top, shape in known.items() if shape})
        elif has_type(layer.type) and all(bottom in shapes for bottom in layer.bottoms):
            try:
                shapes.update(zip(layer.tops, top_shapes(graph, layer, shapes), strict=True))
            except (ShapeError, UnsupportedLayerError) as error:
                warnings.append(str(error))
    return shapes


def _bound(
    graph: Graph,
    weights: Mapping[str, tuple[Array, ...]] | None,
    shapes: Mapping[Blob, Shape],
    caffemodel: str,
    warnings: list[str],
) -> tuple[Graph, bool]:
    """The graph with weights: the caffemodel's where they fit, otherwise placeholders."""
    if weights is not None:
        try:
            return bind_weights(graph, weights, shapes, caffemodel), True
        except (WeightsError, ShapeError) as error:
            warnings.append(str(error))
    layers = tuple(replace(layer, weights=_placeholders(layer, shapes)) for layer in graph.layers)
    return replace(graph, layers=layers), False


def _placeholders(layer: Layer, shapes: Mapping[Blob, Shape]) -> tuple[Array, ...]:
    rule = find_type(layer.type).weights if has_type(layer.type) else None
    if rule is None:
        return ()
    unknown = (np.zeros(0, np.float32),) * 3
    if any(blob not in shapes for blob in (*layer.bottoms, *layer.tops)):
        return unknown
    wanted = rule(layer.params, [shapes[bottom] for bottom in layer.bottoms])
    try:
        return tuple(np.broadcast_to(np.float32(0), shape) for shape in wanted)
    except ValueError:  # more values than numpy can count
        return unknown
