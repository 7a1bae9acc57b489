"""The Caffe formats: prototxt, caffemodel and binaryproto files <-> messages and numpy arrays.

Knows nothing of int8calib, and needs protobuf and numpy only. The schema lives in a private
protobuf package, so that another ``caffe_pb2`` can be loaded beside it.
"""

from __future__ import annotations

from caffe_proto import caffe_pb2
from caffe_proto.binary import read_blob, read_weights
from caffe_proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_proto.errors import CaffeFormatError, UnknownFieldWarning
from caffe_proto.text import parse_prototxt, read_prototxt
from caffe_proto.write import write_blob, write_caffemodel, write_prototxt

__all__ = [
    "CaffeFormatError",
    "LayerParameter",
    "NetParameter",
    "UnknownFieldWarning",
    "caffe_pb2",
    "parse_prototxt",
    "read_blob",
    "read_prototxt",
    "read_weights",
    "write_blob",
    "write_caffemodel",
    "write_prototxt",
]
