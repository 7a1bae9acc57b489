"""Caffemodels and binaryprotos -> arrays, against protobuf's own reading and plain bytes."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffe_proto import NetParameter, caffe_pb2, read_blob, read_weights
from tests.proto_helpers import SHAPE, VALUES, net_of, save, shaped, varint


def only_blob(path: Path) -> NDArray[np.float32]:
    weights = read_weights(path)
    assert list(weights) == ["conv"]
    (blob,) = weights["conv"]
    return blob


def test_blobs_are_read_only_aligned_float32(tmp_path: Path) -> None:
    for padding in range(4):  # so that the floats begin at every offset modulo 4
        net = NetParameter(name="n" * padding)
        net.layer.add(name="conv", blobs=[shaped(VALUES), shaped(VALUES[0, 0, 0])])
        weights, bias = read_weights(save(tmp_path, net.SerializeToString()))["conv"]
        np.testing.assert_array_equal(weights, VALUES)
        np.testing.assert_array_equal(bias, VALUES[0, 0, 0])
        for blob in (weights, bias):
            assert blob.dtype == np.float32
            assert blob.flags.aligned
            assert blob.flags.c_contiguous
            assert not blob.flags.writeable


def test_real_files_agree_with_protobufs_own_reading(shared: Path) -> None:
    files = sorted(shared.glob("models/*/*.caffemodel"))
    assert len(files) > 20
    for path in files:
        net = NetParameter.FromString(path.read_bytes())
        expected = {
            layer.name: layer.blobs for layer in (*net.layer, *net.layers) if len(layer.blobs)
        }
        weights = read_weights(path)
        assert list(weights) == list(expected), path
        for name, blobs in expected.items():
            for ours, boxed in zip(weights[name], blobs, strict=True):
                legacy = (boxed.num, boxed.channels, boxed.height, boxed.width)
                assert ours.shape == (tuple(boxed.shape.dim) or legacy), (path, name)
                np.testing.assert_array_equal(ours.ravel(), np.array(boxed.data, np.float32))


def test_real_weights_agree_with_opencv(shared: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    compared = 0
    for name in ("squeezenet_v1.0", "lenet_everpeace", "mtcnn_det3"):
        (model,) = (shared / "models" / name).glob("*.caffemodel")
        prototxt = sorted((shared / "models" / name).glob("*.prototxt"))[0]
        net = cv2.dnn.readNetFromCaffe(str(prototxt), str(model))
        for layer, blobs in read_weights(model).items():
            if net.getLayer(layer).type != "Convolution":
                continue
            theirs = [net.getParam(net.getLayerId(layer), i) for i in range(len(blobs))]
            for ours, other in zip(blobs, theirs, strict=True):
                np.testing.assert_array_equal(ours.ravel(), np.asarray(other).ravel())
                compared += ours.size
    assert compared > 1_000_000


def unpacked_schema() -> type:
    """Another program's BlobProto, whose numbers are not packed."""
    file = descriptor_pb2.FileDescriptorProto(name="unpacked.proto", package="unpacked")
    blob = file.message_type.add(name="Blob")
    optional, repeated = 1, 3
    for number, name in enumerate(("num", "channels", "height", "width"), 1):
        blob.field.add(name=name, number=number, type=5, label=optional)
    blob.field.add(name="data", number=5, type=2, label=repeated)
    blob.field.add(name="diff", number=6, type=2, label=repeated)
    shape = blob.nested_type.add(name="Shape")
    shape.field.add(name="dim", number=1, type=3, label=repeated)
    blob.field.add(
        name="shape", number=7, type=11, label=optional, type_name=".unpacked.Blob.Shape"
    )
    blob.field.add(name="double_data", number=8, type=1, label=repeated)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("unpacked.Blob"))


@pytest.mark.parametrize("field", ["data", "double_data"])
@pytest.mark.parametrize("count", [1, 2, 210])
def test_unpacked_numbers(tmp_path: Path, field: str, count: int) -> None:
    values = VALUES.ravel()[:count]
    blob = unpacked_schema()(shape={"dim": [count]}, diff=[1, 2, 3], **{field: values.tolist()})
    path = save(tmp_path, blob.SerializeToString(), "mean.binaryproto")
    np.testing.assert_array_equal(read_blob(path), values)


def test_packed_and_unpacked_parts_of_one_blob_follow_each_other(tmp_path: Path) -> None:
    values = VALUES.ravel()
    packed = caffe_pb2.BlobProto(data=values[:11].tolist()).SerializeToString()
    loose = unpacked_schema()(data=values[11:20].tolist()).SerializeToString()
    again = caffe_pb2.BlobProto(data=values[20:23].tolist()).SerializeToString()
    shape = caffe_pb2.BlobProto(shape={"dim": [23]}).SerializeToString()
    path = save(tmp_path, packed + loose + shape + again, "mean.binaryproto")
    boxed = caffe_pb2.BlobProto.FromString(path.read_bytes())
    np.testing.assert_array_equal(read_blob(path), np.array(boxed.data, np.float32))


def test_double_values(tmp_path: Path) -> None:
    doubles = [1 / 3, -2.5, 1e300, 1e-50, 0.1]
    blob = caffe_pb2.BlobProto(shape={"dim": [5]}, double_data=doubles, double_diff=[1.0])
    with np.errstate(over="ignore"):
        expected = np.array(doubles).astype(np.float32)
    np.testing.assert_array_equal(only_blob(save(tmp_path, net_of(blob))), expected)


def test_double_values_win_over_float_values(tmp_path: Path) -> None:
    blob = caffe_pb2.BlobProto(shape={"dim": [2]}, data=[1, 2], double_data=[3, 4])
    assert only_blob(save(tmp_path, net_of(blob))).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("blob", "shape"),
    [
        (caffe_pb2.BlobProto(num=2, channels=3, height=5, width=7), (2, 3, 5, 7)),
        (caffe_pb2.BlobProto(num=1, channels=1, height=1, width=210), (1, 1, 1, 210)),
        # Where both are given, Caffe takes the legacy numbers.
        (
            caffe_pb2.BlobProto(num=1, channels=6, height=5, width=7, shape={"dim": [210]}),
            (1, 6, 5, 7),
        ),
        (caffe_pb2.BlobProto(shape={"dim": [2, 105]}), (2, 105)),
        (caffe_pb2.BlobProto(), (210,)),
    ],
)
def test_shapes(tmp_path: Path, blob: caffe_pb2.BlobProto, shape: tuple[int, ...]) -> None:
    blob.data.extend(VALUES.ravel().tolist())
    blob.diff.extend([1.0] * 210)
    found = only_blob(save(tmp_path, net_of(blob)))
    assert found.shape == shape
    np.testing.assert_array_equal(found.ravel(), VALUES.ravel())


def test_empty_and_scalar_blobs(tmp_path: Path) -> None:
    nothing = caffe_pb2.BlobProto()
    zero = caffe_pb2.BlobProto(shape={"dim": [0, 3]})
    scalar = caffe_pb2.BlobProto(shape={}, data=[2.5])
    weights = read_weights(save(tmp_path, net_of(nothing, zero, scalar)))
    assert [blob.shape for blob in weights["conv"]] == [(0,), (0, 3), ()]
    assert weights["conv"][2] == 2.5


def test_v1_and_v0_layers(tmp_path: Path) -> None:
    net = NetParameter(name="old")
    net.layers.add(name="fc", type="INNER_PRODUCT", blobs=[shaped(VALUES), shaped(VALUES[0])])
    net.layers.add(name="relu", type="RELU")
    old = net.layers.add(bottom=["x"], top=["y"])
    old.layer.name = "conv"
    old.layer.blobs.add(num=1, channels=1, height=1, width=2, data=[3, 4])
    weights = read_weights(save(tmp_path, net.SerializeToString()))
    assert {name: [b.shape for b in blobs] for name, blobs in weights.items()} == {
        "fc": [SHAPE, SHAPE[1:]],
        "conv": [(1, 1, 1, 2)],
    }
    assert weights["conv"][0].tolist() == [[[[3, 4]]]]
    np.testing.assert_array_equal(weights["fc"][0], VALUES)


def test_of_layers_with_one_name_the_last_with_blobs_counts(tmp_path: Path) -> None:
    net = NetParameter()
    for value in (1, 2):
        net.layer.add(name="a", blobs=[caffe_pb2.BlobProto(data=[value])])
    net.layer.add(name="a")
    weights = read_weights(save(tmp_path, net.SerializeToString()))
    assert [blob.tolist() for blob in weights["a"]] == [[2]]


def test_options_of_forks_are_not_interpreted(tmp_path: Path) -> None:
    """Numbers that mean different messages in different forks, with payloads that fit neither."""
    layer = caffe_pb2.LayerParameter(name="conv", blobs=[shaped(VALUES)]).SerializeToString()
    for number in (145, 147, 148, 205, 9000):
        key = number << 3 | 2
        layer += bytes([key & 0x7F | 0x80, key >> 7 & 0x7F | (0x80 if key >> 14 else 0)])
        layer += bytes([key >> 14] if key >> 14 else []) + b"\x03\xff\xff\xff"
    data = b"\xa2\x06" + varint(len(layer)) + layer
    with pytest.raises(DecodeError):
        NetParameter.FromString(data)
    np.testing.assert_array_equal(only_blob(save(tmp_path, data)), VALUES)


def test_layer_names_in_any_writing(tmp_path: Path) -> None:
    layer = b"\n\x02\xff\xfe" + b":\x06*\x04" + struct.pack("<f", 1.5)
    data = b"\xa2\x06" + varint(len(layer)) + layer
    net = NetParameter()
    net.layer.add(name="层/1.α", blobs=[caffe_pb2.BlobProto(data=[2.5])])
    weights = read_weights(save(tmp_path, data + net.SerializeToString()))
    assert {name: blobs[0].tolist() for name, blobs in weights.items()} == {
        "\\xff\\xfe": [1.5],
        "层/1.α": [2.5],
    }


def big_model(folder: Path) -> tuple[Path, int]:
    """A caffemodel of ten layers, and the bytes of its weights."""
    body = bytes(4 * 1_000_003)
    blob = b"*" + varint(len(body)) + body + b":\x05\n\x03" + varint(1_000_003)
    layers = b""
    for i in range(10):
        layer = b"\n\x05conv%d:" % i + varint(len(blob)) + blob
        layers += b"\xa2\x06" + varint(len(layer)) + layer
    return save(folder, layers), 10 * len(body)


def test_no_number_becomes_a_python_object(tmp_path: Path) -> None:
    path, size = big_model(tmp_path)
    peaks = []
    for _ in range(3):  # in one of them Python may enlarge a table of its own
        tracemalloc.start()
        read_weights(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert size < min(peaks) < 1.01 * size


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident pages as Linux does")
def test_resident_memory_peaks_at_the_size_of_the_weights(tmp_path: Path) -> None:
    path, size = big_model(tmp_path)
    code = (
        "import re, sys\nfrom caffe_proto import read_weights\n"
        "status = lambda: open('/proc/self/status').read()\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status())[1])\n"
        "before = peak()\n"
        "weights = read_weights(sys.argv[1])\n"
        "print(peak() - before, len(weights))"
    )
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    grown, layers = map(int, done.stdout.split())
    assert layers == 10
    assert 0.9 * size < grown < 1.5 * size


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_reads_from_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(net_of(shaped(VALUES)),))
    writer.start()
    np.testing.assert_array_equal(only_blob(path), VALUES)
    writer.join()


def test_means(tmp_path: Path) -> None:
    mean = caffe_pb2.BlobProto(num=1, channels=3, height=5, width=7, data=VALUES[0].ravel())
    path = save(tmp_path, mean.SerializeToString(), "mean.binaryproto")
    np.testing.assert_array_equal(read_blob(path), VALUES[:1])
