"""From files to a graph: a prototxt and a caffemodel in, a `Graph` with checked weights out."""

from __future__ import annotations

import os
from collections.abc import Mapping

import caffe_proto
from caffe_proto import NetParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.network.bind import bind_weights
from int8calib.caffe.network.graph import Graph, build_graph
from int8calib.caffe.network.shapes import free_batch, infer_shapes, resolve_inputs
from int8calib.errors import ModelFileError


def load_graph(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str] | None,
    input_shapes: Mapping[str, Shape] | None = None,
) -> tuple[Graph, dict[str, Shape]]:
    """The TEST-phase graph of a Caffe model and the shape of each input.

    `input_shapes` overrides what the prototxt says of its inputs. With `caffemodel` None the
    layers have no weights. Raises `ModelError` and its kin, each naming file and layer.
    """
    net, weights = read_files(prototxt, caffemodel)
    graph = build_graph(net, os.fspath(prototxt))
    inputs = resolve_inputs(graph, input_shapes, weights)
    shapes = infer_shapes(graph, inputs)
    if weights is not None:
        graph = bind_weights(graph, weights, shapes, os.fspath(caffemodel or ""))
    return free_batch(graph, shapes), inputs


def read_files(
    prototxt: str | os.PathLike[str], caffemodel: str | os.PathLike[str] | None
) -> tuple[NetParameter, dict[str, tuple[Array, ...]] | None]:
    """The structure, and the weights by layer name; raises `ModelFileError` for a bad file."""
    try:
        net = caffe_proto.read_prototxt(prototxt)
        weights = None if caffemodel is None else caffe_proto.read_weights(caffemodel)
    except caffe_proto.CaffeFormatError as error:
        raise ModelFileError(str(error)) from None
    except OSError as error:
        raise ModelFileError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return net, weights
