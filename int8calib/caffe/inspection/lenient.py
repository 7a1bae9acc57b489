"""Lenient load: a model as far as its files tell it; what is wrong becomes a warning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import find_type, has_type
from int8calib.caffe.network.batch import free_batch
from int8calib.caffe.network.build import NetState, build_graph, included
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import (
    checked_inputs,
    complete_input,
    is_full,
    shape_advice,
    small_inputs,
)
from int8calib.caffe.network.load import bind_weights, read_files
from int8calib.caffe.network.shapes import Obstacle, Reach, reach
from int8calib.caffe.network.unread import outside_error, summary
from int8calib.errors import ShapeError, WeightsError
from int8calib.limits import check_shape

PICTURE_CHANNELS = 3


@dataclass(frozen=True, eq=False)
class Reading:
    """What could be read of a model.

    Attributes
    ----------
    graph
        The network.
    inputs
        Input name to shape, None where it is not known.
    shapes
        The blobs whose shape is known.
    blocked
        Each layer that cannot run, whatever the sizes, with what stands in its way.
    weighed
        Whether `graph` has the weights of a caffemodel. Otherwise they are zeros that take no
        memory, of the shapes the prototxt asks for (of size 0 where that cannot be told), so that
        what folds can be seen.
    names
        All layer names of the TEST phase.
    warnings
        What was wrong.
    """

    graph: Graph
    inputs: Mapping[str, Shape | None]
    shapes: Mapping[Blob, Shape]
    blocked: Mapping[Layer, Obstacle]
    weighed: bool
    names: tuple[str, ...]
    warnings: tuple[str, ...]


def load_lenient(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str] | None,
    given: Mapping[str, Shape] | None,
    ignore_fields: Sequence[str] = (),
) -> Reading:
    """Load everything that can be told of a model.

    Parameters
    ----------
    prototxt, caffemodel
        The files; the second may be missing.
    given
        Shapes by input name, which override what the prototxt says.
    ignore_fields
        Fields that are not known and shall not matter.

    Raises
    ------
    ModelError
        Where a file cannot be read or holds no graph.
    OptionError
        For a shape given to something that is no input.
    """
    net, weights = read_files(prototxt, caffemodel)
    graph = build_graph(net, os.fspath(prototxt), unique=False, ignore_fields=ignore_fields)
    warnings: list[str] = []
    if graph.unread:
        warnings.append(str(outside_error(graph.source, graph.unread)))
    if graph.notes:
        warnings.append(f"not understood: {summary(graph.notes)}")
    inputs = _inputs(graph, checked_inputs(graph, given), weights or {}, warnings)
    known = {name: shape for name, shape in inputs.items() if shape}
    reached = reach(graph, known)
    declared = {name: shape for name, shape in known.items() if name not in (given or {})}
    warnings += [message for _, message in small_inputs(graph, declared, reached.shapes)]
    graph, weighed = _bound(graph, weights, reached, os.fspath(caffemodel or ""), warnings)
    graph = free_batch(graph, reached.shapes)
    reached = reach(graph, known)
    return Reading(
        graph,
        inputs,
        reached.shapes,
        {layer: why for layer, why in reached.blocked.items() if not why.is_size},
        weighed,
        tuple(layer.name for layer in net.layer if included(layer, NetState())),
        tuple(warnings),
    )


def _inputs(
    graph: Graph,
    given: Mapping[str, Shape],
    weights: Mapping[str, tuple[Array, ...]],
    warnings: list[str],
) -> dict[str, Shape | None]:
    """The shape of each input; unknown channels of a picture are taken to be 3."""
    inputs: dict[str, Shape | None] = {}
    for name, declared in graph.inputs.items():
        shape = given.get(name) or complete_input(graph, name, declared, weights)
        if shape and len(shape) == 4 and shape[1] < 1 and min(shape[2:]) > 0:
            shape = (shape[0], PICTURE_CHANNELS, *shape[2:])
            warnings.append(
                f"input {name}: its channels are not in the prototxt; {PICTURE_CHANNELS} taken"
            )
        if not is_full(shape):
            warnings.append(
                f"input {name}: its size is not in the prototxt, so shapes behind it are "
                f"unknown; give it with --input-shape {shape_advice(name, shape)}"
            )
            shape = None
        else:
            try:
                check_shape(shape, f"input {name}")
            except ShapeError as error:
                warnings.append(str(error))
                shape = None
        inputs[name] = shape
    return inputs


def _bound(
    graph: Graph,
    weights: Mapping[str, tuple[Array, ...]] | None,
    reached: Reach,
    caffemodel: str,
    warnings: list[str],
) -> tuple[Graph, bool]:
    """The graph with weights: the caffemodel's where they fit, otherwise placeholders."""
    if weights is not None:
        try:
            return bind_weights(graph, weights, reached, caffemodel), True
        except WeightsError as error:
            warnings.append(str(error))
    layers = tuple(replace(layer, weights=_placeholders(layer, reached)) for layer in graph.layers)
    return replace(graph, layers=layers), False


def _placeholders(layer: Layer, reached: Reach) -> tuple[Array, ...]:
    """Zeros in place of a layer's weights, of size 0 where their shapes are not known."""
    rule = find_type(layer.type).weights if has_type(layer.type) else None
    if rule is None:
        return ()
    if layer in reached.blocked:
        return (np.zeros(0, np.float32),) * 3
    wanted = rule(layer.params, [reached.shapes[bottom] for bottom in layer.bottoms])
    return tuple(np.broadcast_to(np.float32(0), shape) for shape in wanted)
