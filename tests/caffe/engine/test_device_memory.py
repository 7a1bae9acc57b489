"""What memory a network takes on a device, and how large a batch may be."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.engine import on_device
from int8calib.caffe.engine.on_device import MOST_IMAGES, device_batch, device_bytes
from int8calib.caffe.engine.run import Runner
from int8calib.caffe.layers import convolution
from int8calib.caffe.network.graph import Blob
from tests.caffe.layers.families import CASES
from tests.generated import make_model
from tests.layer_cases import Case
from tests.network_styles import STYLES, conv, conv_bn, data, head, layer
from tests.strict_arrays import STRICT, strict_device


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    text = data(1, 3, 23, 29) + conv_bn("conv1", "data", "num_output: 5 kernel_size: 3")
    text += conv("conv2", "conv1", "num_output: 7 kernel_size: 3") + head("conv2", 11)
    return make_model(tmp_path_factory.mktemp("small"), text)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.type in ("Convolution", "Deconvolution")],
    ids=str,
)
def test_images_in_parts_are_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, bottoms = case.arrays(seed=7)
    bottoms = [np.concatenate([bottom, bottom[::-1], bottom]) for bottom in bottoms]
    whole = case.kind.run(case.message(), weights, bottoms)
    most = max(map(len, bottoms)) - 1  # the last part is smaller
    monkeypatch.setattr(convolution, "MOST_COLUMNS", 1 << 60)
    monkeypatch.setattr(convolution, "MOST_PRODUCTS", most * convolution.groups(case.message()))
    parts = case.kind.run(case.message(), weights, bottoms)
    there = [[STRICT.asarray(array) for array in arrays] for arrays in (weights, bottoms)]
    on_device = case.kind.run(case.message(), *there)
    for wanted, top, strict in zip(whole, parts, on_device, strict=True):
        np.testing.assert_array_equal(top, wanted)
        np.testing.assert_array_equal(strict.get(), wanted)


def peak_memory(run: Callable[[], object]) -> int:
    """The bytes that a call needs at most.

    The least of some calls: in one of them Python may enlarge a table of its own.
    """
    peaks = []
    for _ in range(4):
        tracemalloc.start()
        run()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return min(peaks)


def test_one_image_at_a_time_takes_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("Convolution", "convolution_param { num_output: 2 kernel_size: 7 pad: 3 }",
                ((11, 3, 53, 61),))  # fmt: skip
    weights, bottoms = case.arrays(seed=7)
    columns = 4 * 3 * 49 * 53 * 61

    def run() -> None:
        case.kind.run(case.message(), weights, bottoms)

    assert peak_memory(run) > 11 * columns
    monkeypatch.setattr(convolution, "MOST_COLUMNS", 1)
    assert peak_memory(run) < 2 * columns


@pytest.mark.parametrize("style", STYLES)
def test_memory_is_what_a_run_takes(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "MOST_COLUMNS", 1)
    monkeypatch.setattr(on_device, "MOST_COLUMNS", 1)
    net = int8calib.load_caffe(*make_model(tmp_path, STYLES[style]()), device=strict_device())
    graph = net.graph
    shapes = {"data": (1, *net.input_shapes["data"][1:])}
    # What stands before the detections: their rows are few, and are made on the host.
    blobs = [b for b in graph.outputs if graph.producer(b).type != "DetectionOutput"]
    last = blobs or list(graph.producer(graph.outputs[0]).bottoms[:2])
    runner = Runner(graph, last, net.device)
    fixed, image = device_bytes(graph, shapes, last)
    images = np.ones((7, *shapes["data"][1:]), np.float32)
    most = peak_memory(lambda: runner.run({"data": images}, lambda blob, top: None))
    assert most <= fixed + 7 * image <= 6 * most


def test_a_batch_fills_the_memory(small: tuple[Path, Path]) -> None:
    net = int8calib.load_caffe(*small)
    fixed, image = device_bytes(net.graph, net.input_shapes)
    # 256 MiB for columns, and the weights: BatchNorm's and Scale's too, which are not folded.
    weights = 5 * 27 + 5 + 5 + 1 + 5 + 5 + 7 * 45 + 7 + 11 * 7 + 11
    assert fixed == 4 * ((1 << 26) + weights)
    # conv1 makes 5x21x27 of 3x23x29 values.
    assert image >= 4 * 3 * (5 * 21 * 27 + 3 * 23 * 29)
    free = int((fixed + 7.5 * image) / on_device.USABLE)
    assert device_batch(net.graph, net.input_shapes, free) == 7
    assert device_batch(net.graph, net.input_shapes, 0) == 1
    assert device_batch(net.graph, net.input_shapes, 1 << 50) == MOST_IMAGES


def test_a_network_that_mixes_its_images_has_one_at_a_time(tmp_path: Path) -> None:
    text = data(1, 3, 5, 7) + conv("conv1", "data", "num_output: 2 kernel_size: 3")
    flat = "reshape_param { shape { dim: -1 dim: 5 } }"
    mixed = text + layer("Reshape", "flat", "conv1", param=flat)
    for network, batch in ((text, MOST_IMAGES), (mixed, 1)):
        net = int8calib.load_caffe(*make_model(tmp_path, network))
        assert device_batch(net.graph, net.input_shapes, 1 << 50) == batch
    # Only what is wanted counts.
    assert device_batch(net.graph, net.input_shapes, 1 << 50, [Blob("conv1")]) == MOST_IMAGES


@pytest.mark.parametrize(
    ("kind", "options", "weights", "columns"),
    [
        ("Convolution", "num_output: 4 group: 2 kernel_h: 3 kernel_w: 5", 4 * 3 * 15 + 4,
         6 * 15 * (11 - 2) * (13 - 4)),
        ("ConvolutionDepthwise", "num_output: 6 kernel_size: 3", 6 * 9 + 6, 6 * 9 * 9 * 11),
        ("Deconvolution", "num_output: 4 group: 2 kernel_h: 3 kernel_w: 5", 6 * 2 * 15 + 4,
         4 * 15 * 11 * 13),
    ],
)  # fmt: skip
def test_a_column_matrix_is_of_one_image(
    kind: str,
    options: str,
    weights: int,
    columns: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_device, "MOST_COLUMNS", 1)
    text = data(1, 6, 11, 13) + layer(
        kind, "op", "data", param=f"convolution_param {{ {options} }}"
    )
    net = int8calib.load_caffe(*make_model(tmp_path, text))
    fixed, _ = device_bytes(net.graph, net.input_shapes)
    assert fixed == 4 * (weights + columns)
