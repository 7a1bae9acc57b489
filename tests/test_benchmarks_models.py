"""What the benchmarks compare with: the same models for other engines, and the rendition."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import ncnn_forward, reference  # noqa: E402
from benchmarks.ncnn_forward import NcnnNet, save  # noqa: E402
from benchmarks.ncnn_model import NcnnModel  # noqa: E402
from benchmarks.networks import Material, Network, gather  # noqa: E402
from benchmarks.settings import QUICK  # noqa: E402
from int8calib.caffe.network.fold import fold_batch_norm  # noqa: E402
from int8calib.caffe.network.shapes import multiply_adds  # noqa: E402
from tests.generated import make_model  # noqa: E402
from tests.histogram_cases import golden_histograms  # noqa: E402

EVERYTHING = """
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 1 dim: 3 dim: 23 dim: 29 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_h: 3 kernel_w: 5 pad_h: 1 pad_w: 2 stride: 1 } }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm"
  lrn_param { local_size: 5 alpha: 0.01 beta: 0.75 } }
layer { name: "bn" type: "BatchNorm" bottom: "norm" top: "bn" }
layer { name: "scale" type: "Scale" bottom: "bn" top: "scale" scale_param { bias_term: true } }
layer { name: "leak" type: "ReLU" bottom: "scale" top: "scale" relu_param { negative_slope: 0.1 } }
layer { name: "pool" type: "Pooling" bottom: "scale" top: "pool"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "ave" type: "Pooling" bottom: "scale" top: "ave"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "depthwise" type: "Convolution" bottom: "pool" top: "depthwise"
  convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 6 bias_term: false } }
layer { name: "relu" type: "ReLU" bottom: "depthwise" top: "depthwise" }
layer { name: "sum" type: "Eltwise" bottom: "depthwise" bottom: "ave" top: "sum"
  eltwise_param { operation: SUM coeff: 0.5 coeff: -2 } }
layer { name: "cat" type: "Concat" bottom: "sum" bottom: "pool" bottom: "depthwise" top: "cat" }
layer { name: "drop" type: "Dropout" bottom: "cat" top: "cat" }
layer { name: "fc" type: "InnerProduct" bottom: "cat" top: "fc"
  inner_product_param { num_output: 7 } }
layer { name: "fc_relu" type: "ReLU" bottom: "fc" top: "fc" }
layer { name: "global" type: "Pooling" bottom: "cat" top: "global"
  pooling_param { pool: AVE global_pooling: true } }
layer { name: "last" type: "Convolution" bottom: "global" top: "last"
  convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: "prob" type: "Softmax" bottom: "last" top: "prob" }
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return gather(tmp_path_factory.mktemp("benchmarks"), ["demo"], lambda text: None)


def test_rendition_finds_the_tools_thresholds(shared: Path) -> None:
    for layer in ("fire2/conv1x1_1", "fire9/conv3x3_2", "conv_final"):
        _, kept, counts = golden_histograms(shared)[layer]
        assert reference.threshold_bin(counts) == kept, layer


def test_rendition_counts_positive_values_of_every_bottom(material: Material) -> None:
    tool = reference.Reference(material.networks[0])
    paths = [str(path) for path in material.images[:2]]
    blobs = [tool.blobs(path) for path in paths]
    for name, counts in tool.histograms(paths).items():
        values = np.concatenate([blob[name].reshape(-1) for blob in blobs])
        assert counts.sum() == (values >= 0).sum(), name


def test_multiply_adds_are_taps_times_pixels(material: Material) -> None:
    net = material.networks[0].load()
    (name, shape), *_ = net.input_shapes.items()
    sizes: dict[str, int] = {}
    net.forward(
        {name: np.zeros((1, *shape[1:]), np.float32)},
        lambda layer, _, top: sizes.update({layer: int(np.prod(top.shape[2:]))}),
    )
    counted = ("Convolution", "InnerProduct")
    layers = [layer for layer in net.graph.layers if layer.type in counted]
    expected = sum(layer.weights[0].size * sizes[layer.name] for layer in layers)
    assert multiply_adds(net.graph, {name: (1, *shape[1:])}) == expected


@pytest.mark.parametrize("name", ["demo", "everything"])
def test_ncnn_model_computes_the_same(material: Material, tmp_path: Path, name: str) -> None:
    pytest.importorskip("ncnn")
    network = material.networks[0]
    if name == "everything":
        proto, model = make_model(tmp_path, EVERYTHING)
        network = Network(name, proto, model, (0.0,), 1.0)
    net = network.load()
    (data, shape), *_ = net.input_shapes.items()
    images = np.random.default_rng(3).normal(0, 30, (1, *shape[1:])).astype(np.float32)
    made = save(network, {data: images}, tmp_path)
    assert not made.left_out
    found = NcnnNet(tmp_path).forward({data: images})
    expected = net.forward({data: images})
    assert {blob.name for blob in made.outputs} == set(expected)
    for blob, key in made.outputs.items():
        top = expected[blob.name].reshape(-1)
        np.testing.assert_allclose(
            found[key].reshape(-1), top, rtol=1e-4, atol=2e-5 * np.abs(top).max()
        )


def test_a_model_that_ncnn_refuses_is_no_crash(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ncnn")
    monkeypatch.setattr(
        ncnn_forward, "convert", lambda *args: NcnnModel("nonsense\n", b"", {}, {}, ())
    )
    with pytest.raises(ncnn_forward.NcnnMissingError):
        ncnn_forward.NcnnForward(material.networks[0], {}, QUICK, tmp_path)


def test_onnx_model_computes_the_same(material: Material) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from benchmarks.onnx_model import convert

    net = material.networks[0].load()
    (data, shape), *_ = net.input_shapes.items()
    images = np.random.default_rng(5).normal(0, 1, (1, *shape[1:])).astype(np.float32)
    model = convert(fold_batch_norm(net.graph), {data: images.shape})
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {data: images})
    (expected,) = net.forward({data: images}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_opencv_runs_the_demo_network_as_the_engine_does(material: Material) -> None:
    """The unit of all ratios does the same work."""
    network = material.networks[0]
    net = network.load()
    (data, shape), *_ = net.input_shapes.items()
    images = np.random.default_rng(7).normal(0, 1, (1, *shape[1:])).astype(np.float32)
    other = cv2.dnn.readNetFromCaffe(str(network.proto), str(network.model))
    other.setInput(images, data)
    (expected,) = net.forward({data: images}).values()
    np.testing.assert_allclose(other.forward(), expected, rtol=1e-3, atol=1e-5)
