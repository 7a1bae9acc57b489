"""The running network against OpenCV's dnn, and what `forward` promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.errors import ModelError, OptionError, ShapeError, UnsupportedLayerError
from tests.generated import make_model
from tests.opencv import deviation, opencv_tops

# Prime, non-square sizes; residual, concat, in-place and fixed-batch layers.
NET = """
name: "odd"
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 1 dim: 3 dim: 37 dim: 29 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 7 kernel_h: 3 kernel_w: 5 stride: 2 pad_h: 1 pad_w: 2
    bias_term: false } }
layer { name: "conv1/bn" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "conv1/scale" type: "Scale" bottom: "conv1" top: "conv1"
  scale_param { bias_term: true } }
layer { name: "conv1/relu" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "dw" type: "Convolution" bottom: "pool1" top: "dw"
  convolution_param { num_output: 7 group: 7 kernel_size: 3 pad: 1 } }
layer { name: "pw" type: "Convolution" bottom: "dw" top: "pw"
  convolution_param { num_output: 7 kernel_size: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "pool1" bottom: "pw" top: "sum" }
layer { name: "sum/relu" type: "ReLU" bottom: "sum" top: "sum" relu_param { negative_slope: 0.1 } }
layer { name: "left" type: "Convolution" bottom: "sum" top: "left"
  convolution_param { num_output: 5 kernel_size: 3 pad: 2 dilation: 2 } }
layer { name: "right" type: "Pooling" bottom: "sum" top: "right"
  pooling_param { pool: AVE kernel_size: 3 stride: 1 pad: 1 } }
layer { name: "join" type: "Concat" bottom: "left" bottom: "right" top: "join" }
layer { name: "norm" type: "LRN" bottom: "join" top: "norm" lrn_param { local_size: 5 alpha: 0.001 beta: 0.75 } }
layer { name: "drop" type: "Dropout" bottom: "norm" top: "norm" }
layer { name: "flat" type: "Reshape" bottom: "norm" top: "flat"
  reshape_param { shape { dim: 1 dim: -1 } } }
layer { name: "fc" type: "InnerProduct" bottom: "flat" top: "fc"
  inner_product_param { num_output: 11 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_model(tmp_path_factory.mktemp("odd"), NET)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 60, (3, 3, 37, 29)).astype(np.float32)


def test_every_layer_agrees_with_opencv(model: tuple[Path, Path], images: np.ndarray) -> None:
    seen: dict[str, np.ndarray] = {}
    net = int8calib.load_caffe(*model)
    net.forward(
        {"data": images[:1]}, on_top=lambda name, blob, top: seen.update({name: top.copy()})
    )
    expected = opencv_tops(*model, {"data": images[:1]})
    assert set(expected) == set(seen) - {"data"}
    for name, top in expected.items():
        assert deviation(seen[name], top) < 1e-5, name


def test_a_batch_is_its_images_one_by_one(model: tuple[Path, Path], images: np.ndarray) -> None:
    net = int8calib.load_caffe(*model)
    together = net.forward({"data": images}, outputs=["sum", "fc", "prob"])
    for i in range(len(images)):
        alone = net.forward({"data": images[i : i + 1]}, outputs=["sum", "fc", "prob"])
        for name, top in alone.items():
            np.testing.assert_array_equal(together[name][i : i + 1], top, err_msg=name)


def test_on_top_hears_every_layer_in_order(model: tuple[Path, Path], images: np.ndarray) -> None:
    net = int8calib.load_caffe(*model)
    heard: list[tuple[str, str]] = []
    net.forward({"data": images[:1]}, on_top=lambda name, blob, top: heard.append((name, blob)))
    assert heard == [(layer.name, top.name) for layer in net.graph.layers for top in layer.tops]
    assert heard[:5] == [
        ("data", "data"),
        ("conv1", "conv1"),
        ("conv1/bn", "conv1"),
        ("conv1/scale", "conv1"),
        ("conv1/relu", "conv1"),
    ]


def test_outputs_run_only_what_they_need(model: tuple[Path, Path], images: np.ndarray) -> None:
    net = int8calib.load_caffe(*model)
    heard: list[str] = []
    made = net.forward(
        {"data": images}, on_top=lambda name, blob, top: heard.append(name), outputs=["pool1"]
    )
    assert list(made) == ["pool1"]
    assert heard[-1] == "pool1"
    assert "dw" not in heard


def test_what_forward_returns_stays(model: tuple[Path, Path], images: np.ndarray) -> None:
    net = int8calib.load_caffe(*model)
    first = net.forward({"data": images[:1]})["prob"]
    kept = first.copy()
    net.forward({"data": images[1:2]})
    np.testing.assert_array_equal(first, kept)


def test_inputs_are_not_written(model: tuple[Path, Path], images: np.ndarray) -> None:
    before = images.copy()
    int8calib.load_caffe(*model).forward({"data": images})
    np.testing.assert_array_equal(images, before)


def test_buffers_are_shared_but_never_mixed_up(
    model: tuple[Path, Path], images: np.ndarray
) -> None:
    # A plan that keeps every blob shares nothing; it must give what the sharing plan gives.
    net = int8calib.load_caffe(*model)
    names = {top.name for layer in net.graph.layers for top in layer.tops}
    everything = net.forward({"data": images}, outputs=sorted(names))
    assert everything.keys() == names
    np.testing.assert_array_equal(everything["prob"], net.forward({"data": images})["prob"])


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ShapeError, "input 'data' is not given"),
        ({"image": np.zeros((1, 3, 37, 29))}, OptionError, "'image' is no input"),
        ({"data": np.zeros((3, 37, 29))}, ShapeError, "expected 4 axes"),
        ({"data": np.zeros((1, 4, 37, 29))}, ShapeError, "layer 'conv1'"),
    ],
)
def test_wrong_inputs_are_named(
    model: tuple[Path, Path], inputs: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        int8calib.load_caffe(*model).forward(inputs)


def test_unknown_output_is_named(model: tuple[Path, Path], images: np.ndarray) -> None:
    with pytest.raises(ModelError, match="no layer makes a blob named 'nothing'"):
        int8calib.load_caffe(*model).forward({"data": images}, outputs=["nothing"])


STRANGE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 3 dim: 5 } } }
layer { name: "twice" type: "%s" bottom: "data" top: "twice" }
layer { name: "relu" type: "ReLU" bottom: "twice" top: "out" }
layer { name: "other" type: "ReLU" bottom: "data" top: "other" }
"""


def test_unknown_types_fail_only_where_needed(tmp_path: Path) -> None:
    proto = tmp_path / "net.prototxt"
    proto.write_text(STRANGE % "NobodyKnows")
    net = int8calib.load_caffe(proto, None)
    x = np.arange(30, dtype=np.float32).reshape(1, 2, 3, 5) - 15
    np.testing.assert_array_equal(
        net.forward({"data": x}, outputs=["other"])["other"], np.maximum(x, 0)
    )
    with pytest.raises(
        UnsupportedLayerError,
        match=r"layer 'twice' \(NobodyKnows\) is of a type that does not run.*register_layer",
    ):
        net.forward({"data": x}, outputs=["out"])


def test_register_layer_adds_and_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from int8calib.caffe.layers import registry

    registry.type_names()
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    proto = tmp_path / "net.prototxt"
    proto.write_text(STRANGE % "TimesTwo")
    shape = lambda params, bottoms: [bottoms[0]]  # noqa: E731
    int8calib.register_layer("TimesTwo", lambda params, weights, bottoms: [bottoms[0] * 2], shape)
    net = int8calib.load_caffe(proto, None)
    x = np.arange(30, dtype=np.float32).reshape(1, 2, 3, 5) - 15
    np.testing.assert_array_equal(net.forward({"data": x})["out"], np.maximum(2 * x, 0))
    with pytest.raises(OptionError, match="registered already"):
        int8calib.register_layer("ReLU", lambda params, weights, bottoms: [bottoms[0]], shape)
    int8calib.register_layer(
        "ReLU", lambda params, weights, bottoms: [bottoms[0] + 1], shape, replace=True
    )
    fresh = int8calib.load_caffe(proto, None)
    np.testing.assert_array_equal(fresh.forward({"data": x})["out"], 2 * x + 1)
