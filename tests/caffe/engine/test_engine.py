"""The running network against OpenCV's dnn, and what `forward` promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import int8calib
from int8calib.caffe.engine.run import Runner
from int8calib.errors import ImageError, ModelError, OptionError, ShapeError
from int8calib.workers import single_threaded_blas
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


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int64])
def test_floats_and_integers_of_all_sizes_are_inputs(
    model: tuple[Path, Path], images: np.ndarray, dtype: type
) -> None:
    net = int8calib.load_caffe(*model)
    given = np.clip(images, 0, 127).astype(dtype)
    blobs = [net.graph.last_version("data"), net.graph.last_version("prob")]
    heard = {}
    Runner(net.graph, blobs).run({"data": given}, lambda b, top: heard.update({b.name: top.copy()}))
    expected = net.forward({"data": given.astype(np.float32)})["prob"]
    np.testing.assert_array_equal(net.forward({"data": given})["prob"], expected)
    np.testing.assert_array_equal(net.forward({"data": given.tolist()})["prob"], expected)
    np.testing.assert_array_equal(heard["prob"], expected)
    assert heard["data"].dtype == np.float32


@pytest.mark.parametrize("value", [1j, "1", None])
def test_other_values_are_no_inputs(model: tuple[Path, Path], value: object) -> None:
    net = int8calib.load_caffe(*model)
    batch = {"data": np.full((1, 3, 37, 29), value)}
    with pytest.raises(ImageError, match=f"'data': .* of type {batch['data'].dtype}"):
        net.forward(batch)
    with pytest.raises(ImageError, match=r"'data': .* expected an array of numbers"):
        Runner(net.graph, net.graph.outputs).run(batch, lambda blob, top: None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(tmp_path: Path, value: float) -> None:
    proto = tmp_path / "net.prototxt"
    proto.write_text(
        """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 } } }
        layer { name: "split" type: "Split" bottom: "data" top: "split" }"""
    )
    given = np.array([[value, 1e-50]])
    found = int8calib.load_caffe(proto, None).forward({"data": given})["split"]
    np.testing.assert_array_equal(found, np.array([[value, 0]], np.float32))


def test_forward_gives_what_a_worker_gives(model: tuple[Path, Path], images: np.ndarray) -> None:
    net = int8calib.load_caffe(*model)
    every = [top for layer in net.graph.layers for top in layer.tops]
    alone: dict[str, np.ndarray] = {}
    with single_threaded_blas():
        Runner(net.graph, every).run(
            {"data": images}, lambda blob, top: alone.update({blob.name: top.copy()})
        )
    tops = net.forward({"data": images}, outputs=[blob.name for blob in every])
    assert tops.keys() == alone.keys()
    for name, top in tops.items():
        np.testing.assert_array_equal(top, alone[name], err_msg=name)


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (3, 3), (None, 2)])
def test_forward_limits_blas_to_the_threads_asked_for(
    model: tuple[Path, Path], images: np.ndarray, threads: int | None, expected: int
) -> None:
    def blas() -> set[int]:
        return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}

    net = int8calib.load_caffe(*model)
    seen = set()
    with threadpool_limits(limits=2, user_api="blas"):
        if blas() != {2}:
            pytest.skip("this BLAS cannot be told its number of threads")
        net.forward({"data": images}, lambda *top: seen.update(blas()))
        assert seen == {1}
        seen.clear()
        net.forward({"data": images}, lambda *top: seen.update(blas()), threads=threads)
        assert seen == {expected}
        assert blas() == {2}


def test_unknown_output_is_named(model: tuple[Path, Path], images: np.ndarray) -> None:
    with pytest.raises(ModelError, match="no layer makes a blob named 'nothing'"):
        int8calib.load_caffe(*model).forward({"data": images}, outputs=["nothing"])


@pytest.mark.parametrize("where", ["make_plan", "run_plan"])
def test_memory_that_is_not_there_is_told_in_our_words(
    model: tuple[Path, Path], images: np.ndarray, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = int8calib.load_caffe(*model)

    def fail(*_: object, **__: object) -> None:
        np.empty((1 << 40, 1 << 10), np.float32)  # as numpy words it

    monkeypatch.setattr(f"int8calib.caffe.engine.run.{where}", fail)
    with pytest.raises(ShapeError, match=r"net\.prototxt: Unable to allocate .*fewer images"):
        net.forward({"data": images})
