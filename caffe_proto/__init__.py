"""The Caffe formats: prototxt, caffemodel and binaryproto files, as messages and numpy arrays.

Knows nothing of int8calib, and needs protobuf and numpy only. The schema lives in a private
protobuf package, so that another ``caffe_pb2`` can be loaded beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caffe_proto import caffe_pb2
    from caffe_proto.binary import read_blob, read_weights
    from caffe_proto.caffe_pb2 import LayerParameter, NetParameter
    from caffe_proto.errors import CaffeFormatError, UnknownFieldWarning
    from caffe_proto.text import parse_prototxt, read_prototxt
    from caffe_proto.unread import Unread, unknown_fields, unread_fields
    from caffe_proto.write import write_blob, write_caffemodel, write_prototxt

__all__ = [
    "CaffeFormatError",
    "LayerParameter",
    "NetParameter",
    "UnknownFieldWarning",
    "Unread",
    "caffe_pb2",
    "parse_prototxt",
    "read_blob",
    "read_prototxt",
    "read_weights",
    "unknown_fields",
    "unread_fields",
    "write_blob",
    "write_caffemodel",
    "write_prototxt",
]

_HOMES = {
    "CaffeFormatError": "errors",
    "LayerParameter": "caffe_pb2",
    "NetParameter": "caffe_pb2",
    "UnknownFieldWarning": "errors",
    "Unread": "unread",
    "parse_prototxt": "text",
    "read_blob": "binary",
    "read_prototxt": "text",
    "read_weights": "binary",
    "unknown_fields": "unread",
    "unread_fields": "unread",
    "write_blob": "write",
    "write_caffemodel": "write",
    "write_prototxt": "write",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing the package loads neither library."""
    from importlib import import_module

    if name == "caffe_pb2":
        return import_module("caffe_proto.caffe_pb2")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"caffe_proto.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, those not imported yet included."""
    return sorted(__all__)
