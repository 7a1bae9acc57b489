"""Files that are no caffemodel or binaryproto, or damaged ones: one clear line each."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest

from caffe_proto import CaffeFormatError, NetParameter, caffe_pb2, read_blob, read_weights
from tests.proto_helpers import VALUES, net_of, save, shaped, varint

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102454720\n"
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(100)
ONNX = b"\x08\x07\x12\x07pytorch\x1a\x031.9:\x02\x12\x00"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a caffemodel: the file is empty"),
        (LFS, r"a Git LFS pointer \(oid sha256:4d7a, 102,454,720 bytes\).* `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html>", "an HTML or XML page; the download"),
        (b"\r\n<?xml version='1.0'?>", "an HTML or XML page"),
        (HDF5, "an HDF5 file, not a caffemodel; .*snapshot_format: BINARYPROTO"),
        (b"\x1f\x8b\x08\x00abc", "a gzip archive; unpack it first"),
        (b"PK\x03\x04abc", "a zip archive; unpack it first"),
        (b"\x93NUMPY\x01\x00", r"a NumPy \.npy file"),
        (b'name: "LeNet"\nlayer {\n', "it is text; are the prototxt and the caffemodel swapped"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "not a caffemodel: byte 0 begins no field"),
        (ONNX, "not a caffemodel: field 1 is stored as a number"),
        (caffe_pb2.BlobProto(num=1, data=[1.0]).SerializeToString(), "field 1 .* a number"),
        (caffe_pb2.BlobProto(data=[1.0]).SerializeToString(), "field 5 is stored as text"),
        (NetParameter(name="x" * 7).SerializeToString(), "not a caffemodel: it holds no layer"),
        (b"\xa2\x06\x7f\x00\x00", "not a caffemodel: the field at byte 0 runs to byte 130, past"),
    ],
)
def test_other_files_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = save(tmp_path, data)
    with pytest.raises(CaffeFormatError, match=f"^{re.escape(str(path))}: .*{words}") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a binaryproto: the file is empty"),
        (LFS, "a Git LFS pointer"),
        (net_of(), "not a binaryproto, it looks like a caffemodel"),
        (caffe_pb2.BlobProto(num=1).SerializeToString(), "it holds no values"),
        (b"104 117 123\n", "not a binaryproto: it is text$"),
        (b"\x93NUMPY\x01\x00", r"a NumPy \.npy file"),
    ],
)
def test_other_files_than_means_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = save(tmp_path, data, "mean.binaryproto")
    with pytest.raises(CaffeFormatError, match=f"^{re.escape(str(path))}: .*{words}"):
        read_blob(path)


def test_every_cut_of_a_file_is_an_error_or_a_whole_number_of_layers(tmp_path: Path) -> None:
    net = NetParameter(name="net")
    for name in ("conv1", "conv2"):
        net.layer.add(name=name, type="Convolution", blobs=[shaped(VALUES[:, 0, 0])])
    data = net.SerializeToString()
    first = NetParameter(name="net", layer=net.layer[:1]).ByteSize()
    for length in range(1, len(data)):
        path = save(tmp_path, data[:length])
        if length == first:
            assert list(read_weights(path)) == ["conv1"]
            continue
        words = "damaged or cut off after layer 'conv1'" if length > first else "not a caffemodel"
        with pytest.raises(CaffeFormatError, match=f": {words}: "):
            read_weights(path)


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (caffe_pb2.BlobProto(shape={"dim": [2, 3]}, data=[1.0] * 5), "2x3 does not fit 5 values"),
        (caffe_pb2.BlobProto(shape={"dim": [2, 3]}), "2x3 does not fit 0 values"),
        (caffe_pb2.BlobProto(shape={"dim": [-1, -5]}, data=[1.0] * 5), "-1x-5 does not fit"),
        (caffe_pb2.BlobProto(shape={}, data=[1.0] * 2), r"\(\) does not fit 2 values"),
        (caffe_pb2.BlobProto(num=1, channels=2, data=[1.0] * 2), "1x2x0x0 does not fit 2 values"),
    ],
)
def test_a_shape_that_does_not_fit(tmp_path: Path, blob: caffe_pb2.BlobProto, words: str) -> None:
    path = save(tmp_path, net_of(shaped(VALUES), blob))
    with pytest.raises(CaffeFormatError, match=f"layer 'conv', blob 1: the shape {words}"):
        read_weights(path)


def test_packed_numbers_of_odd_length(tmp_path: Path) -> None:
    layer = b"\n\x04conv:\x05*\x03abc"
    path = save(tmp_path, b"\xa2\x06" + varint(len(layer)) + layer)
    with pytest.raises(CaffeFormatError, match="3 bytes of packed numbers are no multiple of 4"):
        read_weights(path)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    whole = net_of(shaped(VALUES[:, :, 0, 0]), caffe_pb2.BlobProto(double_data=[1, 2, 3]))
    rng = np.random.default_rng(5)
    messages = []
    for _ in range(500):
        stream = io.BytesIO(whole)
        stream.seek(int(rng.integers(len(whole))))
        stream.write(rng.bytes(int(rng.integers(1, 4))))
        try:
            read_weights(save(tmp_path, stream.getvalue()))
        except CaffeFormatError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)
