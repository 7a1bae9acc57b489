"""The batch axis: whether images of a batch stay apart, and layers that fix the batch size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from int8calib.arrays import Shape
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.errors import ShapeError


def free_batch(graph: Graph, shapes: Mapping[Blob, Shape]) -> Graph:
    """Let Reshape layers copy the batch size where they fix it.

    A deploy prototxt often writes `dim: 1` (or 10) first; the batch size is the engine's to
    choose, so a first dim equal to the batch the prototxt declares becomes 0.

    Parameters
    ----------
    graph
        The network.
    shapes
        The shapes of its blobs for the declared batch; where one is missing, nothing is changed.
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
    params = layer.copy_params()
    params.reshape_param.shape.dim[0] = 0
    return replace(layer, params=params)


def is_batchable(graph: Graph, inputs: Mapping[str, Shape], layers: Iterable[Layer]) -> bool:
    """Whether every blob of some layers keeps one entry of axis 0 for each image of a batch.

    Parameters
    ----------
    graph
        The network.
    inputs
        The shape of each input; its batch does not matter.
    layers
        What is to run, in running order.
    """
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
