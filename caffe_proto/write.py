"""Prototxt, caffemodel and binaryproto files, written from nets and arrays.

Weights are written as they lie in memory, without passing through protobuf's lists of floats.
Every file appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caffe_proto.caffe_pb2 import BlobShape, NetParameter
from caffe_proto.files import open_atomic
from caffe_proto.oneline import one_line
from caffe_proto.printer import net_text
from caffe_proto.recognize import Path
from caffe_proto.wire import LEN, encode_varint

__all__ = ["write_blob", "write_caffemodel", "write_prototxt"]

_NET_LAYER, _LAYER_BLOBS = 100, 7  # field numbers
_BLOB_DATA, _BLOB_SHAPE = 5, 7


def write_prototxt(path: Path, net: NetParameter) -> None:
    """Write a net's structure as text.

    Parameters
    ----------
    path
        The file.
    net
        The structure. What its prototxt held and the schema lacks is written as it was; blobs that
        the net may hold are left out.

    Raises
    ------
    OSError
        The file cannot be written; an older file of that name stays as it was.
    """
    _write(path, [prototxt_bytes(net)])


def prototxt_bytes(net: NetParameter) -> bytes:
    """Encode what `write_prototxt` writes."""
    return net_text(_without_blobs(net)).encode("utf-8")


def write_caffemodel(
    path: Path, net: NetParameter, weights: Mapping[str, Sequence[NDArray[Any]]]
) -> None:
    """Write a net with its weights.

    Parameters
    ----------
    path
        The file.
    net
        The structure, in today's form; all its fields are kept but those that the schema lacks.
        Options of forks whose field number collides with another fork's are written under this
        project's own numbers.
    weights
        Layer name -> blobs, as `read_weights` gives them. They are stored as float32 with their
        shape. Blobs that the net itself holds are not written.

    Raises
    ------
    ValueError
        The net holds layers of an older form, or the weights name a layer that the net lacks.
    OSError
        The file cannot be written; an older file of that name stays as it was.
    """
    _write(path, caffemodel_parts(net, weights))


def caffemodel_parts(
    net: NetParameter, weights: Mapping[str, Sequence[NDArray[Any]]]
) -> Iterator[bytes | memoryview]:
    """Encode what `write_caffemodel` writes, part by part; raises the same ValueError at once."""
    if net.layers:
        raise ValueError("the net holds layers of an older form; read it with read_prototxt")
    absent = weights.keys() - {layer.name for layer in net.layer}
    if absent:
        names = one_line(", ".join(sorted(absent)))
        raise ValueError(f"weights for layers that the net lacks: {names}")
    return _caffemodel(_without_blobs(net), weights)


def write_blob(path: Path, array: ArrayLike) -> None:
    """Write one array as a binaryproto.

    Parameters
    ----------
    path
        The file.
    array
        The values, such as a mean image of shape (1, C, H, W); they are stored as float32.

    Raises
    ------
    OSError
        The file cannot be written; an older file of that name stays as it was.
    """
    _write(path, _blob(np.asarray(array)))


def _without_blobs(net: NetParameter) -> NetParameter:
    copy = NetParameter()
    copy.CopyFrom(net)
    for layer in copy.layer:
        layer.ClearField("blobs")
    for old in copy.layers:
        old.ClearField("blobs")
        old.layer.ClearField("blobs")
    return copy


def _caffemodel(
    net: NetParameter, weights: Mapping[str, Sequence[NDArray[Any]]]
) -> Iterator[bytes | memoryview]:
    """Yield the file's parts: the net's own fields, then layer by layer; empties `unread`."""
    head = NetParameter()
    head.CopyFrom(net)
    head.ClearField("layer")
    head.ClearField("unread")
    yield head.SerializePartialToString()
    written: set[str] = set()
    for layer in net.layer:
        layer.ClearField("unread")
        parts: list[bytes | memoryview] = [layer.SerializePartialToString()]
        # Where layers share a name (one per phase), the first carries the blobs.
        if layer.name not in written:
            for blob in weights.get(layer.name, ()):
                parts += _sized(_LAYER_BLOBS, _blob(np.asarray(blob)))
        written.add(layer.name)
        yield from _sized(_NET_LAYER, parts)


def _blob(array: NDArray[Any]) -> list[bytes | memoryview]:
    """Encode an array as a BlobProto."""
    values = np.ascontiguousarray(array, np.dtype("<f4"))
    shape = BlobShape(dim=array.shape).SerializeToString()
    return [
        *_sized(_BLOB_DATA, [values.reshape(-1).view(np.uint8).data]),
        *_sized(_BLOB_SHAPE, [shape]),
    ]


def _sized(number: int, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """Put the key and the length of a field before the parts of its payload."""
    size = sum(len(part) for part in parts)
    return [encode_varint(number << 3 | LEN) + encode_varint(size), *parts]


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    with open_atomic(path) as file:
        file.writelines(parts)
