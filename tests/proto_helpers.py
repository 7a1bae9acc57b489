"""What the tests of caffe_proto share: small nets as bytes, spelled with protobuf or by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

from caffe_proto import NetParameter, caffe_pb2

SHAPE = (2, 3, 5, 7)
VALUES = np.random.default_rng(20).standard_normal(SHAPE).astype(np.float32)


def save(folder: Path, data: bytes, name: str = "net.caffemodel") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def net_of(*blobs: caffe_pb2.BlobProto) -> bytes:
    net = NetParameter(name="net")
    net.layer.add(name="data", type="Input", top=["data"])
    net.layer.add(name="conv", type="Convolution", blobs=blobs)
    return net.SerializeToString()


def shaped(values: NDArray[np.float32]) -> caffe_pb2.BlobProto:
    return caffe_pb2.BlobProto(
        shape=caffe_pb2.BlobShape(dim=values.shape), data=values.ravel().tolist()
    )


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def expected(text: str) -> NetParameter:
    """The net by protobuf's own parser."""
    return text_format.Parse(text, NetParameter())


def forward(prototxt: Path, caffemodel: Path, data: NDArray[np.float32]) -> NDArray[np.float32]:
    """The net's output by OpenCV."""
    cv2 = pytest.importorskip("cv2")
    net = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    net.setInput(data)
    return np.asarray(net.forward())
