"""In the flow: nets and arrays come in; prototxt, caffemodel and binaryproto files go out.

Weights are written as they lie in memory, without passing through protobuf's lists of floats.
Every file appears whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path as _Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import ArrayLike, NDArray

from caffe_proto.caffe_pb2 import BlobShape, NetParameter
from caffe_proto.recognize import Path
from caffe_proto.wire import LEN, encode_varint

__all__ = ["write_blob", "write_caffemodel", "write_prototxt"]

_NET_LAYER, _LAYER_BLOBS = 100, 7  # field numbers
_BLOB_DATA, _BLOB_SHAPE = 5, 7


def write_prototxt(path: Path, net: NetParameter) -> None:
    """Write a net's structure as text; blobs that it may hold are left out.

    Raises:
        OSError: The file cannot be written; an older file of that name stays as it was.

    """
    text = text_format.MessageToString(_without_blobs(net), as_utf8=True)
    _write(path, [text.encode("utf-8")])


def write_caffemodel(
    path: Path, net: NetParameter, weights: Mapping[str, Sequence[NDArray[Any]]]
) -> None:
    """Write a net with its weights.

    Args:
        path: The file.
        net: The structure, in today's form; all its fields are kept. Options of forks whose field
            number collides with another fork's are written under this project's own numbers.
        weights: Layer name -> blobs, as ``read_weights`` gives them. They are stored as float32
            with their shape. Blobs that the net itself holds are not written.

    Raises:
        ValueError: The net holds layers of an older form, or the weights name a layer that the
            net lacks.
        OSError: The file cannot be written; an older file of that name stays as it was.

    """
    if net.layers:
        raise ValueError("the net holds layers of an older form; read it with read_prototxt")
    absent = weights.keys() - {layer.name for layer in net.layer}
    if absent:
        raise ValueError(f"weights for layers that the net lacks: {', '.join(sorted(absent))}")
    _write(path, _caffemodel(_without_blobs(net), weights))


def write_blob(path: Path, array: ArrayLike) -> None:
    """Write one array, such as a mean image of shape (1, C, H, W), as a binaryproto.

    Raises:
        OSError: The file cannot be written; an older file of that name stays as it was.

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
    """Yield the file's parts: the net's own fields, then layer by layer."""
    head = NetParameter()
    head.CopyFrom(net)
    head.ClearField("layer")
    yield head.SerializePartialToString()
    written: set[str] = set()
    for layer in net.layer:
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
    """Write beside the target, then rename onto it."""
    target = _Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.writelines(parts)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
