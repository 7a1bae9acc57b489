"""Folding: the folded net computes what the raw one does, and folds what ncnnoptimize folds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.fold import fold_batch_norm
from tests.generated import make_model
from tests.opencv import deviation, opencv_tops

HEAD = 'layer { name: "data" type: "Input" top: "data" input_param { shape { %s } } }\n'
NORM = """
layer { name: "%(n)s/bn" type: "BatchNorm" bottom: "%(n)s" top: "%(n)s" batch_norm_param { eps: 0.001 } }
layer { name: "%(n)s/scale" type: "Scale" bottom: "%(n)s" top: "%(n)s" scale_param { bias_term: true } }
"""
FOLDABLE = {
    "plain": 'type: "Convolution" convolution_param { num_output: 5 kernel_size: 3 bias_term: false }',
    "bias": 'type: "Convolution" convolution_param { num_output: 5 kernel_size: 3 }',
    "grouped": 'type: "Convolution" convolution_param { num_output: 6 group: 3 kernel_size: 3 }',
    "depthwise": 'type: "ConvolutionDepthwise" convolution_param { num_output: 3 kernel_size: 3 }',
    "fc": 'type: "InnerProduct" inner_product_param { num_output: 7 }',
    "fc_transposed": 'type: "InnerProduct" inner_product_param { num_output: 7 transpose: true }',
}
IMAGES = np.random.default_rng(3).normal(0, 60, (2, 3, 13, 11)).astype(np.float32)


@pytest.mark.parametrize("kind", FOLDABLE)
def test_folded_layers_compute_the_same(kind: str, tmp_path: Path) -> None:
    text = HEAD % "dim: 1 dim: 3 dim: 13 dim: 11"
    text += f'layer {{ name: "a" bottom: "data" top: "a" {FOLDABLE[kind]} }}' + NORM % {"n": "a"}
    proto, model = make_model(tmp_path, text)
    net = int8calib.load_caffe(proto, model)
    folded = Net(fold_batch_norm(net.graph), net.input_shapes)
    assert [layer.name for layer in folded.graph.layers] == ["data", "a"]
    (expected,) = net.forward({"data": IMAGES}).values()
    (found,) = folded.forward({"data": IMAGES}).values()
    assert deviation(found, expected) < 2e-6
    if kind not in ("depthwise", "fc_transposed"):  # OpenCV knows neither
        top = opencv_tops(proto, model, {"data": IMAGES})["a/scale"]
        assert deviation(found.reshape(top.shape), top) < 2e-5


def names_after_folding(tmp_path: Path, text: str) -> list[str]:
    net = int8calib.load_caffe(*make_model(tmp_path, HEAD % "dim: 1 dim: 3 dim: 13 dim: 11" + text))
    return [layer.name for layer in fold_batch_norm(net.graph).layers]


def test_batch_norm_alone_folds(tmp_path: Path) -> None:
    text = f'layer {{ name: "a" bottom: "data" top: "a" {FOLDABLE["plain"]} }}'
    text += 'layer { name: "bn" type: "BatchNorm" bottom: "a" top: "b" }'
    assert names_after_folding(tmp_path, text) == ["data", "a"]


def test_scale_alone_stays(tmp_path: Path) -> None:
    text = f'layer {{ name: "a" bottom: "data" top: "a" {FOLDABLE["plain"]} }}'
    text += 'layer { name: "s" type: "Scale" bottom: "a" top: "a" }'
    assert names_after_folding(tmp_path, text) == ["data", "a", "s"]


SQUARE = HEAD % "dim: 2 dim: 3 dim: 7 dim: 7"
TO_FIVE = 'type: "Convolution" convolution_param { num_output: 5 kernel_size: 3 }'
NORM_SCALE = (
    'layer { name: "bn" type: "BatchNorm" bottom: "a" top: "b" }\n'
    'layer { name: "s" type: "Scale" bottom: "b" top: "c" scale_param { axis: %d bias_term: true } }'
)


@pytest.mark.parametrize(
    ("text", "axis", "layers"),
    [
        # The top is (2, 5, 5, 5): a Scale along any axis but the batch's has 5 factors.
        (TO_FIVE, 1, ["data", "a"]),
        (TO_FIVE, -3, ["data", "a"]),
        (TO_FIVE, 2, ["data", "a", "s"]),
        (TO_FIVE, 3, ["data", "a", "s"]),
        (TO_FIVE, -1, ["data", "a", "s"]),
        (TO_FIVE, -2, ["data", "a", "s"]),
        (FOLDABLE["fc"], 1, ["data", "a"]),
        (FOLDABLE["fc"], -1, ["data", "a"]),
        # The top is (2, 3, 7, 3): its channels are not the outputs.
        (
            'type: "InnerProduct" inner_product_param { num_output: 3 axis: 3 }',
            1,
            ["data", "a", "bn", "s"],
        ),
    ],
)
def test_a_scale_folds_along_the_channels_only(
    text: str, axis: int, layers: list[str], tmp_path: Path
) -> None:
    text = SQUARE + f'layer {{ name: "a" bottom: "data" top: "a" {text} }}\n' + NORM_SCALE % axis
    net = int8calib.load_caffe(*make_model(tmp_path, text))
    folded = Net(fold_batch_norm(net.graph), net.input_shapes)
    assert [layer.name for layer in folded.graph.layers] == layers
    x = np.random.default_rng(3).normal(0, 60, (2, 3, 7, 7)).astype(np.float32)
    _, norm, scale = net.graph.layers[1:]
    (top,) = net.forward({"data": x}, outputs=["a"]).values()
    expected = np.empty(top.shape)
    mean, var, moving = (blob.astype(float) for blob in norm.weights)
    gamma, beta = scale.weights
    for index in np.ndindex(*top.shape):  # Caffe's formulas, value by value
        channel, place = index[1], index[axis]
        spread = np.sqrt(var[channel] / moving[0] + 1e-5)
        normed = (top[index] - mean[channel] / moving[0]) / spread
        expected[index] = normed * gamma[place] + beta[place]
    (found,) = folded.forward({"data": x}).values()
    assert deviation(found, expected) < 1e-5


def test_batch_norm_with_another_reader_of_its_bottom_stays(tmp_path: Path) -> None:
    text = f'layer {{ name: "a" bottom: "data" top: "a" {FOLDABLE["plain"]} }}'
    text += 'layer { name: "bn" type: "BatchNorm" bottom: "a" top: "b" }'
    text += 'layer { name: "r" type: "ReLU" bottom: "a" top: "c" }'
    assert names_after_folding(tmp_path, text) == ["data", "a", "bn", "r"]


def test_batch_norm_before_the_convolution_stays(tmp_path: Path) -> None:
    text = 'layer { name: "bn" type: "BatchNorm" bottom: "data" top: "b" }'
    text += f'layer {{ name: "a" bottom: "b" top: "a" {FOLDABLE["plain"]} }}'
    assert names_after_folding(tmp_path, text) == ["data", "bn", "a"]


def test_kept_blobs_stay_observable(tmp_path: Path) -> None:
    text = HEAD % "dim: 1 dim: 3 dim: 13 dim: 11"
    text += f'layer {{ name: "a" bottom: "data" top: "a" {FOLDABLE["plain"]} }}' + NORM % {"n": "a"}
    net = int8calib.load_caffe(*make_model(tmp_path, text))
    bottom = net.graph.layers[1].tops[0]
    assert len(fold_batch_norm(net.graph, keep=[bottom]).layers) == 4


def test_folded_real_network_gives_real_caffe_values(shared: Path) -> None:
    golden = json.loads((shared / "golden/bons_imagenet_mod11l.caffe_activations.json").read_text())
    folder = shared / "models/bons_imagenet_mod11l"
    net = int8calib.load_caffe(folder / golden["prototxt"], folder / golden["caffemodel"])
    folded = fold_batch_norm(net.graph)
    assert not [layer for layer in folded.layers if layer.type == "BatchNorm"]
    x = synthetic_input(golden["input_shape"], golden["amplitude"])
    (found,) = Net(folded, net.input_shapes).forward({"data": x}).values()
    expected = golden["blobs"]["prob/prob"]
    got = found.reshape(-1)[expected["positions"]]
    assert np.abs(got - expected["values"]).max() < 2e-5 * expected["absmax"]


def synthetic_input(shape: list[int], amplitude: float) -> np.ndarray:
    i = np.arange(np.prod(shape), dtype=np.float64)
    noise = ((i * 2654435761) % 2**32 / 2**32 - 0.5) * 2 * amplitude
    return noise.astype(np.float32).reshape(shape)
