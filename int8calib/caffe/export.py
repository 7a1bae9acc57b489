"""Export of a network in memory to a prototxt and a caffemodel.

BatchNorm that is folded is gone, biases that were added are there; Caffe, caffe2ncnn and OpenCV
read the files as any other model's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import caffe_proto
from caffe_proto.write import caffemodel_parts, prototxt_bytes
from int8calib.arrays import Array, Shape
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.graph import Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.errors import OutputError
from int8calib.files import write_all


def write_model(
    net: Net, prototxt: str | os.PathLike[str], caffemodel: str | os.PathLike[str]
) -> None:
    """Write a network as a Caffe model, both files or none.

    Parameters
    ----------
    net : Net
        The network. In-place layers stay in place, layers stand in running order, data layers
        become Input.
    prototxt, caffemodel : path
        The files to write.

    Raises
    ------
    OutputError
        Where a file cannot be written, and for one name twice or swapped names.
    """
    names = os.fspath(prototxt), os.fspath(caffemodel)
    if os.path.realpath(names[0]) == os.path.realpath(names[1]):
        raise OutputError(f"{names[0]}: would hold both prototxt and weights; name two files")
    if names[0].endswith(".caffemodel") and names[1].endswith(".prototxt"):
        raise OutputError(f"{names[0]} and {names[1]} are swapped: the prototxt comes first")
    structure, weights = encode_model(net)
    write_all({os.fspath(prototxt): structure, os.fspath(caffemodel): weights})


def encode_model(net: Net) -> tuple[bytes, Iterable[bytes | memoryview]]:
    """Encode `net` as `write_model` writes it: the prototxt, and the parts of the caffemodel."""
    proto, weights = to_caffe(net)
    return prototxt_bytes(proto), caffemodel_parts(proto, weights)


def to_caffe(net: Net) -> tuple[caffe_proto.NetParameter, dict[str, tuple[Array, ...]]]:
    """Turn a network into the parts of a Caffe model.

    Parameters
    ----------
    net
        The network.

    Returns
    -------
    structure
        Today's form of a `NetParameter`, without weights.
    weights
        Blobs by layer name.
    """
    proto = caffe_proto.NetParameter()
    proto.name = net.graph.name
    weights: dict[str, tuple[Array, ...]] = {}
    for layer in net.graph.layers:
        if layer.type in INPUT_TYPES:
            _add_inputs(proto, layer, net.input_shapes)
            continue
        message = proto.layer.add()
        message.CopyFrom(layer.params)
        # Layers that shared weights by name have their own now.
        for field in ("bottom", "top", "blobs", "param", "include", "exclude", "phase"):
            message.ClearField(field)
        message.bottom.extend(blob.name for blob in layer.bottoms)
        message.top.extend(blob.name for blob in layer.tops)
        if layer.weights:
            weights[layer.name] = layer.weights
    return proto, weights


def _add_inputs(proto: caffe_proto.NetParameter, layer: Layer, shapes: Mapping[str, Shape]) -> None:
    """An Input layer for each top of a data layer."""
    for number, top in enumerate(layer.tops):
        message = proto.layer.add()
        message.name = layer.name if number == 0 else f"{layer.name}_{top.name}"
        message.type = "Input"
        message.top.append(top.name)
        if top.name in shapes:
            message.input_param.shape.add().dim.extend(shapes[top.name])
