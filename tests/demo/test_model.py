"""The demo's shipped network, run by OpenCV: it fits its prototxt and recognizes new pictures."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from caffe_proto import caffe_pb2, read_prototxt, read_weights
from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT
from int8calib.demo.draw import LABELS, SIZE, draw_images

HELD_OUT_SEED = 20011
"""Neither the pictures trained on nor those whose accuracy the trainer reports."""


@pytest.fixture(scope="module")
def definition() -> caffe_pb2.NetParameter:
    return read_prototxt(PROTOTXT)


@pytest.fixture(scope="module")
def blobs() -> dict[str, list[npt.NDArray[np.float32]]]:
    return {name: list(of_layer) for name, of_layer in read_weights(CAFFEMODEL).items()}


def probabilities(count: int) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    net = cv2.dnn.readNetFromCaffe(str(PROTOTXT), str(CAFFEMODEL))
    for image, label in draw_images(count, HELD_OUT_SEED):
        pixels = ((image.astype(np.float32) - np.array(MEAN, np.float32)) * np.float32(NORM))[None]
        net.setInput(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), "data")
        yield net.forward().reshape(-1).copy(), label


def test_the_files_are_small_enough_to_ship() -> None:
    assert 100_000 < CAFFEMODEL.stat().st_size <= 300_000
    assert PROTOTXT.stat().st_size < 20_000


def test_opencv_recognizes_new_pictures_but_not_all_of_them() -> None:
    answers = list(probabilities(200))
    assert all(p.shape == (len(LABELS),) for p, _ in answers)
    assert all(abs(float(p.sum()) - 1) < 1e-5 for p, _ in answers)
    right = np.array([int(p.argmax()) == label for p, label in answers])
    assert 0.93 <= right.mean() < 1.0
    of_label = np.array([label for _, label in answers])
    assert all(right[of_label == index].mean() >= 0.75 for index in range(len(LABELS)))


def test_the_network_holds_what_matters_to_int8(definition: caffe_pb2.NetParameter) -> None:
    types = {layer.type for layer in definition.layer}
    assert types == {
        *("Input", "Convolution", "BatchNorm", "Scale", "ReLU", "Pooling"),
        *("Concat", "Eltwise", "Dropout", "InnerProduct", "Softmax"),
    }
    convolutions = [x.convolution_param for x in definition.layer if x.type == "Convolution"]
    groups = {p.group for p in convolutions}
    assert 1 in groups
    assert any(p.group == p.num_output for p in convolutions), "depthwise"
    assert any(1 < p.group < p.num_output for p in convolutions), "grouped"
    assert {p.bias_term for p in convolutions} == {True, False}
    assert {p.kernel_size[0] for p in convolutions} == {1, 3}
    pools = [x.pooling_param for x in definition.layer if x.type == "Pooling"]
    assert {(p.pool, p.global_pooling) for p in pools} == {
        (caffe_pb2.PoolingParameter.MAX, False),
        (caffe_pb2.PoolingParameter.AVE, True),
    }
    shape = definition.layer[0].input_param.shape[0].dim
    assert list(shape) == [1, 3, SIZE, SIZE]


def test_every_layer_with_weights_has_them_in_caffes_order_and_shape(
    definition: caffe_pb2.NetParameter, blobs: dict[str, list[npt.NDArray[np.float32]]]
) -> None:
    weighted = ("Convolution", "BatchNorm", "Scale", "InnerProduct")
    assert set(blobs) == {x.name for x in definition.layer if x.type in weighted}
    for layer in definition.layer:
        shapes = [blob.shape for blob in blobs.get(layer.name, [])]
        assert all(np.isfinite(blob).all() for blob in blobs.get(layer.name, []))
        if layer.type == "Convolution":
            p = layer.convolution_param
            assert shapes[0][0] == p.num_output
            assert shapes[0][2:] == (p.kernel_size[0], p.kernel_size[0])
            assert shapes[1:] == [(p.num_output,)] * p.bias_term
        elif layer.type == "BatchNorm":
            mean, variance, factor = blobs[layer.name]
            assert mean.shape == variance.shape
            assert variance.min() >= 0
            assert factor.tolist() == [1.0]
        elif layer.type == "Scale":
            assert shapes[0] == shapes[1] == blobs[layer.name.replace("_scale", "_bn")][0].shape
        elif layer.type == "InnerProduct":
            assert shapes == [(10, 80), (10,)]


def test_channels_of_one_layer_have_very_different_ranges(
    blobs: dict[str, list[npt.NDArray[np.float32]]],
) -> None:
    """What makes one scale per tensor lossy: folded factors of one layer differ by over 20."""
    spread = []
    for name in blobs:
        if name.endswith("_bn"):
            factor = np.abs(blobs[name.replace("_bn", "_scale")][0])
            folded = factor / np.sqrt(blobs[name][1] + 1e-5)
            spread.append(float(folded.max() / folded.min()))
    assert len(spread) == 11
    assert sum(s > 20 for s in spread) >= 3
