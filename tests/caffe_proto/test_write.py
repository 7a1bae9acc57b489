"""Nets and arrays -> files, read back by protobuf and OpenCV."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_proto import (
    NetParameter,
    caffe_pb2,
    parse_prototxt,
    read_blob,
    read_prototxt,
    read_weights,
    unknown_fields,
    unread_fields,
    write_blob,
    write_caffemodel,
    write_prototxt,
)
from caffe_proto.write import net_text

TEXT = """
name: "net 层"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [1, 3, 11, 13] } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 5 kernel_size: 3 pad: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 7 bias_term: false } }
layer { name: "up" type: "Interp" bottom: "conv" top: "up" interp_param { zoom_factor: 2 } }
layer { name: "clip" type: "Clip" bottom: "fc" top: "clip" clip_param { min: -0.1 max: 1e-7 } }
"""
RNG = np.random.default_rng(7)
WEIGHTS = {
    "conv": (
        RNG.standard_normal((5, 3, 3, 3)).astype(np.float32),
        RNG.standard_normal(5).astype(np.float32),
    ),
    "fc": (RNG.standard_normal((7, 715)).astype(np.float32),),
}


def test_protobuf_reads_the_caffemodel(tmp_path: Path) -> None:
    net = parse_prototxt(TEXT)
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, net, WEIGHTS)
    expected = NetParameter()
    expected.CopyFrom(net)
    for layer in expected.layer:
        for blob in WEIGHTS.get(layer.name, ()):
            layer.blobs.add(shape={"dim": blob.shape}, data=blob.ravel().tolist())
    found = NetParameter.FromString(path.read_bytes())
    assert found == expected
    # The blobs come last in their layer; otherwise byte for byte what protobuf writes.
    assert path.stat().st_size == expected.ByteSize()


def test_weights_come_back(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    odd = {
        "conv": (WEIGHTS["conv"][0][::-1, :, ::2], np.float32(2.5) * np.ones(()), np.zeros((0, 3))),
        "fc": (WEIGHTS["fc"][0].astype(np.float64).T,),
    }
    write_caffemodel(path, parse_prototxt(TEXT), odd)
    found = read_weights(path)
    assert found.keys() == odd.keys()
    for name, blobs in odd.items():
        for one, other in zip(found[name], blobs, strict=True):
            assert one.shape == other.shape
            np.testing.assert_array_equal(one, other.astype(np.float32))


def test_opencv_reads_both_files(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    net = parse_prototxt(TEXT)
    del net.layer[3:]
    write_prototxt(tmp_path / "net.prototxt", net)
    write_caffemodel(tmp_path / "net.caffemodel", net, WEIGHTS)
    dnn = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"))
    data = RNG.standard_normal((1, 3, 11, 13)).astype(np.float32)
    dnn.setInput(data)
    padded = np.pad(data[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    conv = np.einsum("chwij,ocij->ohw", windows, WEIGHTS["conv"][0])
    conv += WEIGHTS["conv"][1][:, None, None]
    expected = WEIGHTS["fc"][0] @ conv.ravel()
    np.testing.assert_allclose(dnn.forward("fc").ravel(), expected, rtol=1e-4, atol=1e-4)


def test_prototxt_comes_back(tmp_path: Path) -> None:
    net = parse_prototxt(TEXT)
    path = tmp_path / "net.prototxt"
    write_prototxt(path, net)
    assert read_prototxt(path) == net
    assert text_format.Parse(path.read_text("utf-8"), NetParameter()) == net
    assert "层" in path.read_text("utf-8")


def test_prototxt_leaves_blobs_out(tmp_path: Path) -> None:
    net = parse_prototxt(TEXT)
    net.layer[1].blobs.add(data=[1, 2, 3])
    write_prototxt(tmp_path / "net.prototxt", net)
    assert "blobs" not in (tmp_path / "net.prototxt").read_text("utf-8")
    assert len(net.layer[1].blobs[0].data) == 3


def test_layers_of_one_name_store_their_weights_once(tmp_path: Path) -> None:
    net = parse_prototxt('layer { name: "a" } layer { name: "a" }')
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, net, {"a": [np.ones(3, np.float32)]})
    counts = [len(layer.blobs) for layer in NetParameter.FromString(path.read_bytes()).layer]
    assert counts == [1, 0]
    assert read_weights(path)["a"][0].tolist() == [1, 1, 1]


def test_real_models_come_back(shared: Path, tmp_path: Path) -> None:
    for name in ("squeezenet_v1.1", "mtcnn_det1", "yufacedet_v1"):
        prototxt = sorted((shared / "models" / name).glob("*.prototxt"))[0]
        (model,) = (shared / "models" / name).glob("*.caffemodel")
        net, weights = read_prototxt(prototxt), read_weights(model)
        used = {layer.name for layer in net.layer}
        weights = {layer: blobs for layer, blobs in weights.items() if layer in used}
        write_caffemodel(tmp_path / "m", net, weights)
        write_prototxt(tmp_path / "p", net)
        assert read_prototxt(tmp_path / "p") == net
        boxed = {
            layer.name: [np.array(b.data, np.float32).reshape(tuple(b.shape.dim)) for b in blobs]
            for layer in NetParameter.FromString((tmp_path / "m").read_bytes()).layer
            if (blobs := layer.blobs)
        }
        assert boxed.keys() == weights.keys()
        for layer, blobs in weights.items():
            for one, other in zip(boxed[layer], blobs, strict=True):
                np.testing.assert_array_equal(one, other)


UNREAD = """
name: "n" odd: -inf
layer { name: "a" type: "Odd" odd_param { a: 1 s: "q\\"\\n\\303\\251" b < c: [1, {}] > } }
layer { name: "b" type: "Convolution" fork: SOME [pkg.ext] { z: 1 }
  convolution_param { num_output: 7 odd: "x" "y" engine: MKL weight_filler { foo: 1 } }
  pooling_param { pool: FOO pad: 1 pad: 2 } include { phase: VAL } include { stage: "x" }
  relu_param { } relu_param { negative_slope: 0.1 }
}
"""


def test_what_the_schema_lacks_is_written_as_it_was_read(tmp_path: Path) -> None:
    def unread(net: NetParameter) -> list[list[tuple[str, str, str]]]:
        found = [unread_fields(net), *map(unread_fields, net.layer)]
        return [sorted((u.field, u.kind, u.value) for u in one) for one in found]

    net = parse_prototxt(UNREAD, warn=False)
    write_prototxt(tmp_path / "p", net)
    again = read_prototxt(tmp_path / "p", warn=False)
    assert unread(again) == unread(net)
    assert unknown_fields(again.layer[0]) == {
        "odd_param": [{"a": ["1"], "s": ['q"\né'], "b": [{"c": ["1", {}]}]}]
    }
    # Without it the text is that of protobuf's own printer, and no caffemodel holds it.
    for message in (net, again, *net.layer, *again.layer):
        message.ClearField("unread")
    assert again == net
    assert net_text(net) == text_format.MessageToString(net, as_utf8=True)
    write_caffemodel(tmp_path / "m", parse_prototxt(UNREAD, warn=False), {})
    assert NetParameter.FromString((tmp_path / "m").read_bytes()) == net


def test_the_temporary_file_cannot_be_guessed_or_led_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".mean.binaryproto.{os.getpid()}.tmp").symlink_to(victim)
    monkeypatch.setattr(os, "urandom", bytes)  # even where the name is known
    (tmp_path / f".{bytes(12).hex()}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_blob(tmp_path / "mean.binaryproto", np.ones(3))
    monkeypatch.undo()
    (tmp_path / "link").symlink_to("mean.binaryproto")
    write_blob(tmp_path / "link", np.ones(3))
    assert (tmp_path / "link").is_symlink()
    assert read_blob(tmp_path / "mean.binaryproto").shape == (3,)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (11,), ()])
def test_blobs_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = RNG.standard_normal(shape).astype(np.float32)
    path = tmp_path / "mean.binaryproto"
    write_blob(path, values)
    boxed = caffe_pb2.BlobProto.FromString(path.read_bytes())
    assert tuple(boxed.shape.dim) == shape
    np.testing.assert_array_equal(np.array(boxed.data, np.float32), values.ravel())
    np.testing.assert_array_equal(read_blob(path), values)


def test_refuses_weights_without_a_layer_and_old_nets(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    with pytest.raises(ValueError, match="layers that the net lacks: odd"):
        write_caffemodel(path, parse_prototxt(TEXT), {"odd": WEIGHTS["fc"]})
    old = NetParameter()
    old.layers.add(name="a")
    with pytest.raises(ValueError, match="layers of an older form"):
        write_caffemodel(path, old, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    class Broken:
        """Weights that fail when the second layer asks for its own."""

        def keys(self) -> set[str]:
            return set()

        def get(self, name: str, default: object) -> object:
            if name == "fc":
                raise KeyboardInterrupt
            return default

    path = tmp_path / "net.caffemodel"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_caffemodel(path, parse_prototxt(TEXT), Broken())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_blob(tmp_path / "absent" / "mean.binaryproto", np.ones(3))
