"""A graph with weights from the files of a Caffe model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import caffe_proto
from caffe_proto import NetParameter
from caffe_proto.errors import one_line
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.layers.registry import find_type, has_type
from int8calib.caffe.network.batch import free_batch
from int8calib.caffe.network.build import build_graph
from int8calib.caffe.network.graph import QUANTIZED_TYPES, Blob, Graph, Layer
from int8calib.caffe.network.inputs import (
    checked_inputs,
    complete_input,
    is_full,
    resolve_inputs,
    small_inputs,
)
from int8calib.caffe.network.shapes import (
    Reach,
    reach,
    refuse_misfits,
    refuse_unread,
)
from int8calib.caffe.network.unread import (
    NOT_NEEDED,
    NOT_RUN,
    outside_error,
    summary,
    unneeded_notes,
)
from int8calib.errors import (
    ModelError,
    ModelFileError,
    ShapeError,
    UnsupportedLayerError,
    WeightsError,
)


def load_graph(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str] | None,
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Sequence[str] = (),
) -> tuple[Graph, dict[str, Shape]]:
    """Load the TEST-phase graph of a Caffe model and the shape of each input.

    Parameters
    ----------
    prototxt, caffemodel
        The files; without a caffemodel the layers have no weights.
    input_shapes
        Shapes by input name, which override what the prototxt says.
    ignore_fields
        Fields of the prototxt that nobody understood and that shall not matter, such as
        ``convolution_param.foo``; a name stands for all that is inside of it.

    Returns
    -------
    tuple
        The graph with checked weights, and input name to shape. Layers that cannot run may have
        no weights.

    Raises
    ------
    ModelError
        Or one of its kin: a file that cannot be read, sizes that are missing, are placeholders or
        do not fit, weights that do not fit, a quantized layer whose part of the prototxt, or that
        of a layer before it, is not understood. Names file and layer.
    OptionError
        For a shape given to something that is no input.

    Warns
    -----
    UnknownFieldWarning
        Something of the prototxt was left out without harm; `Graph.notes` tells it all.
    """
    net, weights = read_files(prototxt, caffemodel)
    graph = build_graph(net, os.fspath(prototxt), ignore_fields=ignore_fields)
    if graph.unread:
        raise outside_error(graph.source, graph.unread)
    if not graph.inputs:
        raise ModelError(
            f"{graph.source}: the network has no input that a layer reads; expected an Input "
            "layer, or input and input_shape at its head"
        )
    inputs = resolve_inputs(graph, input_shapes, weights)
    declared = {name: shape for name, shape in inputs.items() if name not in (input_shapes or {})}
    reached = reach(graph, inputs)
    refuse_unread(graph, reached)
    for _, message in small_inputs(graph, declared, reached.shapes):
        raise ShapeError(f"{graph.source}: {message}")
    refuse_misfits(reached)
    if weights is not None:
        graph = bind_weights(graph, weights, reached, os.fspath(caffemodel or ""))
    return free_batch(_noted(graph), reached.shapes), inputs


def _noted(graph: Graph, reason: str = NOT_NEEDED) -> Graph:
    """The graph with notes of what nothing needs, after a warning that tells all notes."""
    graph = replace(graph, notes=(*graph.notes, *unneeded_notes(graph.layers, reason)))
    if graph.notes:
        message = one_line(f"{graph.source}: not understood: {summary(graph.notes)}")
        warnings.warn(message, caffe_proto.UnknownFieldWarning, stacklevel=4)
    return graph


def load_unsized(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str],
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Sequence[str] = (),
) -> Graph:
    """Load a graph with weights whether or not its sizes are known, for what runs nothing.

    Parameters
    ----------
    prototxt, caffemodel
        The files.
    input_shapes
        Shapes by input name, if any; more of the weights can be checked with them.
    ignore_fields
        As for `load_graph`.

    Returns
    -------
    Graph
        Every Convolution and InnerProduct has weights of fitting shapes, but for those behind a
        layer that cannot run, which may have none.

    Raises
    ------
    ModelError
        Or one of its kin, for a file that cannot be read or weights that do not fit.
    OptionError
        For a shape given to something that is no input.
    """
    net, weights = read_files(prototxt, caffemodel)
    built = build_graph(net, os.fspath(prototxt), ignore_fields=ignore_fields)
    graph = _noted(built, NOT_RUN)
    given = checked_inputs(graph, input_shapes)
    shapes = {
        name: given.get(name) or complete_input(graph, name, declared, weights or {})
        for name, declared in graph.inputs.items()
    }
    known = {name: shape for name, shape in shapes.items() if is_full(shape)}
    return bind_weights(graph, weights or {}, reach(graph, known), os.fspath(caffemodel))


def read_files(
    prototxt: str | os.PathLike[str], caffemodel: str | os.PathLike[str] | None
) -> tuple[NetParameter, dict[str, tuple[Array, ...]] | None]:
    """Read the structure of a model, and its weights by layer name.

    Parameters
    ----------
    prototxt, caffemodel
        The files; without a caffemodel the weights are None.

    Raises
    ------
    ModelFileError
        For a file that cannot be opened or breaks its format.
    """
    try:
        net = caffe_proto.read_prototxt(prototxt, warn=False)
        weights = None if caffemodel is None else caffe_proto.read_weights(caffemodel)
    except caffe_proto.CaffeFormatError as error:
        raise ModelFileError(str(error)) from None
    except OSError as error:
        raise ModelFileError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return net, weights


def bind_weights(
    graph: Graph, weights: Mapping[str, tuple[Array, ...]], reached: Reach, source: str
) -> Graph:
    """Give each layer its blobs of the caffemodel, by layer name.

    Parameters
    ----------
    graph
        The network.
    weights
        Blobs by layer name. A layer that shares parameters by name may take them from the layer
        that owns them.
    reached
        How far the graph runs. Where a bottom has no size, all but the sizes that follow from it
        is checked; of a layer behind one that cannot run, blobs that do not fit are left out.
    source
        The caffemodel in messages.

    Returns
    -------
    Graph
        The same layers with weights; `unused_weights` lists layers that only `weights` has.

    Raises
    ------
    WeightsError
        Where blobs are missing or do not have the shape the prototxt asks for.
    """
    owners = _owners(graph, weights)
    layers = []
    for layer in graph.layers:
        obstacle = reached.blocked.get(layer)
        try:
            bound = _fitting(layer, weights.get(layer.name, ()), owners, reached.shapes)
        except WeightsError as error:
            if obstacle is None or obstacle.is_size:
                raise WeightsError(f"{source}: {layer.label}: {error}") from None
            bound = ()
        layers.append(replace(layer, weights=bound))
    names = {layer.name for layer in layers}
    unused = tuple(name for name, blobs in weights.items() if blobs and name not in names)
    return replace(graph, layers=tuple(layers), unused_weights=unused)


def _owners(graph: Graph, weights: Mapping[str, tuple[Array, ...]]) -> dict[str, Array]:
    """Blobs by the parameter name (`param { name: ... }`) under which layers share them."""
    table: dict[str, Array] = {}
    for layer in graph.layers:
        for spec, blob in zip(layer.params.param, weights.get(layer.name, ()), strict=False):
            if spec.name:
                table.setdefault(spec.name, blob)
    return table


def _fitting(
    layer: Layer,
    blobs: tuple[Array, ...],
    owners: Mapping[str, Array],
    shapes: Mapping[Blob, Shape],
) -> tuple[Array, ...]:
    """`blobs`, or those of `owners`, in the shapes that the layer asks for, the rest as it is."""
    rule = find_type(layer.type).weights if has_type(layer.type) else None
    bottoms: list[Shape] | None = [shapes[bottom] for bottom in layer.bottoms if bottom in shapes]
    if len(bottoms or ()) < len(layer.bottoms) or any(top not in shapes for top in layer.tops):
        bottoms = _assumed_bottoms(layer, blobs)
    if rule is None or not bottoms:
        return blobs
    try:
        wanted = list(rule(layer.params, bottoms))
    except (ShapeError, UnsupportedLayerError) as error:
        raise WeightsError(str(error)) from None
    if not blobs:
        names = [spec.name for spec in layer.params.param[: len(wanted)]]
        blobs = tuple(owners[name] for name in names if name in owners)
    if wanted and not blobs:
        raise WeightsError("has no weights; is it the caffemodel of this prototxt?")
    if len(blobs) < len(wanted):
        raise WeightsError(f"has {len(blobs)} blobs; the prototxt asks for {len(wanted)}")
    fitted = (
        _fit(blob, shape, i) for i, (blob, shape) in enumerate(zip(blobs, wanted, strict=False))
    )
    return (*fitted, *blobs[len(wanted) :])


def _assumed_bottoms(layer: Layer, blobs: tuple[Array, ...]) -> list[Shape] | None:
    """A bottom for which weights have as many values as they have, where its shape is unknown.

    None for types other than those whose weights are quantized.
    """
    if layer.type not in QUANTIZED_TYPES:
        return None
    if layer.type == "InnerProduct":
        param = layer.params.inner_product_param
        inputs = blobs[0].size // max(param.num_output, 1) if blobs else 1
        return [(*(1,) * max(param.axis, 0), inputs)]
    per_group = blobs[0].shape[1] if blobs and blobs[0].ndim == 4 else 1
    return [(1, per_group * groups(layer.params), 1, 1)]


def _fit(blob: Array, shape: Shape, index: int) -> Array:
    """`blob` in `shape`; axes of length 1 may differ, as in the four axes of old caffemodels."""
    if _squeezed(blob.shape) != _squeezed(shape):
        raise WeightsError(f"blob {index} has shape {blob.shape}; the prototxt asks for {shape}")
    return blob.reshape(shape)


def _squeezed(shape: Shape) -> Shape:
    return tuple(dim for dim in shape if dim != 1)
