"""Prototxt, caffemodel and binaryproto files, written from nets and arrays.

Weights are written as they lie in memory, without passing through protobuf's lists of floats.
Every file appears whole or not at all.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from numpy.typing import ArrayLike, NDArray

from caffe_proto.caffe_pb2 import BlobShape, NetParameter, UnreadField
from caffe_proto.errors import one_line
from caffe_proto.files import FilePath, open_atomic
from caffe_proto.unread import name_parts
from caffe_proto.wire import LEN, encode_varint

__all__ = ["net_text", "write_blob", "write_caffemodel", "write_prototxt"]

_NET_LAYER, _LAYER_BLOBS = 100, 7  # field numbers
_BLOB_DATA, _BLOB_SHAPE = 5, 7


def write_prototxt(path: FilePath, net: NetParameter) -> None:
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
    path: FilePath, net: NetParameter, weights: Mapping[str, Sequence[NDArray[Any]]]
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


def write_blob(path: FilePath, array: ArrayLike) -> None:
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


def _write(path: FilePath, parts: Iterable[bytes | memoryview]) -> None:
    with open_atomic(path) as file:
        file.writelines(parts)


# What has no place in the schema: the names of the messages around it, and the field itself.
_Kept: TypeAlias = "tuple[tuple[str, ...], UnreadField]"
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')
_STEP = 2  # columns that each message is indented


def net_text(net: NetParameter) -> str:
    """Return a net in protobuf's text format.

    Parameters
    ----------
    net
        The net, as `read_prototxt` gives it or made by a program.

    Returns
    -------
    str
        The same text as protobuf's own printer gives. What stands in `unread` is written where it
        stood: inside of its message, behind the fields that are known. Where such a message is
        repeated, it goes into the first.
    """
    return "".join(_lines(net, [], 0))


def _lines(message: Message, kept: Sequence[_Kept], indent: int) -> Iterator[str]:
    """The fields of a message, one a line, then what is kept of it."""
    kept = [*kept, *_own(message)]
    for field, value in message.ListFields():
        if field.name == "unread":
            continue
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            out = io.StringIO()
            for one in value if _is_list(value) else [value]:
                text_format.PrintField(field, one, out, indent, as_utf8=True)
            yield out.getvalue()
            continue
        inner = [(parents[1:], entry) for parents, entry in kept if parents[:1] == (field.name,)]
        for one in value if _is_list(value) else [value]:
            yield f"{' ' * indent}{field.name} {{\n"
            yield from _lines(one, inner, indent + _STEP)
            yield f"{' ' * indent}}}\n"
            inner = []
    yield from _entries((entry for parents, entry in kept if not parents), indent)


def _is_list(value: object) -> bool:
    return not isinstance(value, (Message, bool, int, float, str, bytes))


def _own(message: Message) -> Iterator[_Kept]:
    for entry in getattr(message, "unread", ()):
        *parents, _ = name_parts(entry.name)
        yield tuple(parents), entry


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return f"\\{character}" if character in '"\\' else f"\\{ord(character):03o}"


def _entries(entries: Iterable[UnreadField], indent: int) -> Iterator[str]:
    for entry in entries:
        start = f"{' ' * indent}{name_parts(entry.name)[-1]}"
        if entry.HasField("value"):
            value = entry.value
            if entry.quoted:
                value = f'"{_ESCAPED.sub(_escape, value)}"'
            yield f"{start}: {value}\n"
            continue
        yield f"{start} {{\n"
        yield from _entries(entry.children, indent + _STEP)
        yield f"{' ' * indent}}}\n"
