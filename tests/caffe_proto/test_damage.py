"""Files that are no caffemodel or binaryproto, or damaged ones: one clear line each."""

from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from caffe_proto import (
    CaffeFormatError,
    NetParameter,
    caffe_pb2,
    read_blob,
    read_prototxt,
    read_weights,
)
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
        (caffe_pb2.BlobProto(shape={"dim": [0, 2**62, 2**62]}), "0x46116860.*x.* does not fit 0"),
        (caffe_pb2.BlobProto(shape={"dim": [2**32, 2**32]}), "4294967296x4294967296 does not fit"),
        (
            caffe_pb2.BlobProto(num=0, channels=2**31 - 1, height=2**31 - 1),
            "0x2147483647x2147483647x0 does not fit 0",
        ),
        (caffe_pb2.BlobProto(shape={}, data=[1.0] * 2), r"\(\) does not fit 2 values"),
        (caffe_pb2.BlobProto(num=1, channels=2, data=[1.0] * 2), "1x2x0x0 does not fit 2 values"),
    ],
)
def test_a_shape_that_does_not_fit(tmp_path: Path, blob: caffe_pb2.BlobProto, words: str) -> None:
    path = save(tmp_path, net_of(shaped(VALUES), blob))
    with pytest.raises(CaffeFormatError, match=f"layer 'conv', blob 1: the shape {words}"):
        read_weights(path)


@pytest.mark.parametrize("axes", [33, 65, 20000])
def test_too_many_axes(tmp_path: Path, axes: int) -> None:
    blob = caffe_pb2.BlobProto(shape={"dim": [1] * axes}, data=[1.0])
    with pytest.raises(CaffeFormatError, match="layer 'conv', blob 0: more than 32 axes"):
        read_weights(save(tmp_path, net_of(blob)))
    with pytest.raises(CaffeFormatError, match="more than 32 axes"):
        read_blob(save(tmp_path, blob.SerializeToString(), "mean.binaryproto"))
    most = caffe_pb2.BlobProto(shape={"dim": [1] * 32}, data=[1.0])
    assert read_weights(save(tmp_path, net_of(most)))["conv"][0].shape == (1,) * 32


def test_too_much_of_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_proto.binary.MAX_LAYERS", 1000)
    with pytest.raises(CaffeFormatError, match="a layer has more than 1000 blobs"):
        read_weights(save(tmp_path, net_of(*[caffe_pb2.BlobProto()] * 1001)))
    with pytest.raises(CaffeFormatError, match="more than 1000 layers"):
        read_weights(save(tmp_path, b"\xa2\x06\x00" * 1001))
    # Loose floats between which something else stands, each a piece of its own.
    piece = b"\x2d" + np.float32(1).tobytes() + b"\x58\x00"
    blob = piece * 10_001 + caffe_pb2.BlobProto(shape={"dim": [10_001]}).SerializeToString()
    with pytest.raises(CaffeFormatError, match="values in more than 10000 pieces"):
        read_blob(save(tmp_path, blob, "mean.binaryproto"))


def test_short_runs_of_equal_fields_take_a_time_that_grows_with_the_file(tmp_path: Path) -> None:
    pair = b"\x5d\0\0\0\0\x5d1111\x650000\x651111"  # fields 11 and 12, two of each
    start = time.process_time()
    with pytest.raises(CaffeFormatError, match="no values"):
        read_blob(save(tmp_path, pair * 40_000, "mean.binaryproto"))
    assert time.process_time() - start < 5  # minutes, if each looks at all that is left


def test_layer_and_file_names_are_shown_on_one_line(tmp_path: Path) -> None:
    net = NetParameter()
    blob = caffe_pb2.BlobProto(shape={"dim": [2]})
    net.layer.add(name="\x1b[2J\n" + "x" * 5000, blobs=[blob])
    path = tmp_path / "a\nb\x1b[31m.caffemodel"
    path.write_bytes(net.SerializeToString())
    with pytest.raises(CaffeFormatError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    assert r"a\nb\x1b[31m.caffemodel: layer '\x1b[2J\n" in message
    assert message.endswith("blob 0: the shape 2 does not fit 0 values")


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_has_no_end_or_never_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_proto.files.PIPE_WAIT", 0.1)
    os.mkfifo(tmp_path / "pipe")
    for read in (read_weights, read_blob, read_prototxt):
        with pytest.raises(CaffeFormatError, match=r"pipe: not a .*: the file is empty"):
            read(tmp_path / "pipe")
        with pytest.raises(OSError, match="it is a device; expected a file"):
            read("/dev/zero")
        with pytest.raises(OSError, match="it is a folder; expected a file"):
            read(tmp_path)
        with pytest.raises(OSError, match="no file can have such a name"):
            read("a\0b")
