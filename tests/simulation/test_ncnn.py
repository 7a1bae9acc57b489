"""The simulation against the real ncnn: a small net made here, and real models where they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import int8calib
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.calibration.scales import WeightOptions, weight_scales
from int8calib.levels import WINOGRAD_SUM
from int8calib.simulation.build import int8_layers
from int8calib.simulation.fusion import requantized
from int8calib.table import read_table
from int8calib.table.model import CalibrationTable, LayerScales
from tests.generated import make_model
from tests.ncnn_runtime import int8_bytes, layer_bytes, read_layers, run, sqnr

CAFFE = """
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 1 dim: 3 dim: 37 dim: 29 } } }
layer { name: "a" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 13 kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "a/relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Convolution" bottom: "a" top: "b"
  convolution_param { num_output: 11 kernel_size: 1 } }
layer { name: "c" type: "Convolution" bottom: "a" top: "c"
  convolution_param { num_output: 7 kernel_h: 3 kernel_w: 5 pad_h: 1 pad_w: 2 } }
layer { name: "j" type: "Concat" bottom: "b" bottom: "c" top: "j" }
layer { name: "d" type: "Convolution" bottom: "j" top: "d"
  convolution_param { num_output: 18 group: 18 kernel_size: 3 pad: 1 stride: 2 } }
layer { name: "d/relu" type: "ReLU" bottom: "d" top: "d" relu_param { negative_slope: 0.25 } }
layer { name: "e" type: "Convolution" bottom: "d" top: "e"
  convolution_param { num_output: 17 kernel_size: 3 } }
layer { name: "f" type: "InnerProduct" bottom: "e" top: "f"
  inner_product_param { num_output: 19 } }
"""
NCNN = """7767517
9 11
Input data 0 1 data 0=29 1=37 2=3
Convolution a 1 1 data a 0=13 1=3 3=2 4=1 5=1 6=351 8=102 9=1
Split s 1 2 a a0 a1
Convolution b 1 1 a1 b 0=11 1=1 5=1 6=143 8=2
Convolution c 1 1 a0 c 0=7 1=5 11=3 4=2 14=1 5=1 6=1365 8=2
Concat j 2 1 b c j
ConvolutionDepthWise d 1 1 j d 0=18 1=3 3=2 4=1 5=1 6=162 7=18 8=101 9=2 -23310=1,0.25
Convolution e 1 1 d e 0=17 1=3 5=1 6=2754 8=2
InnerProduct f 1 1 e f 0=19 1=1 2=%d 8=2
"""
BOTTOM_SCALES = {"a": 0.61, "b": 0.53, "c": 0.37, "d": 0.29, "e": 0.43, "f": 0.23}
TOP_SCALES = {"a": 0.37, "d": 0.43}  # of the layer that reads the first top of the Split


def test_a_net_of_fused_layers_gives_what_ncnn_gives(tmp_path: Path) -> None:
    net = int8calib.load_caffe(*make_model(tmp_path, CAFFE))
    images = np.random.default_rng(5).normal(0, 60, (5, 3, 37, 29)).astype(np.float32)
    rows, data = [], b""
    size = 0
    for layer in net.graph.layers:
        if layer.name not in BOTTOM_SCALES:
            continue
        weight, bias = layer.weights
        flat = weight.reshape(len(weight), -1)
        size = weight.size
        scales = (np.float32(127) / np.abs(flat).max(axis=1)).astype(np.float32)
        product = flat * scales[:, None]
        levels = np.trunc(product + np.copysign(np.float32(0.5), product))
        rows.append(LayerScales(layer.name, scales, BOTTOM_SCALES[layer.name]))
        top_scale = TOP_SCALES.get(layer.name)
        data += layer_bytes(levels, bias, scales, BOTTOM_SCALES[layer.name], top_scale)
    (tmp_path / "net.param").write_text(NCNN % size)
    (tmp_path / "net.bin").write_bytes(data)
    table = CalibrationTable(tuple(rows))
    simulated = int8calib.simulate(net, table)
    for blob in ("b", "c", "e", "f"):
        expected = run(tmp_path / "net.param", tmp_path / "net.bin", images, blob)
        (found,) = simulated.forward({"data": images}, outputs=[blob]).values()
        assert sqnr(expected, found.reshape(len(images), -1)) > 100, blob
    (plain,) = net.forward({"data": images}).values()
    assert sqnr(expected, plain) < 45  # so it is INT8 that agrees, not float


MODELS = {
    "squeezenet_v1.0": ("squeezenet_v1.0.caffemodel", 227, 1.0),
    "squeezenet_v1.1": ("squeezenet_v1.1.caffemodel", 227, 1.0),
    "bons_imagenet_mod11l": ("MobilenetV2-mod11l-ImageNet_iter_850000.caffemodel", 224, 0.017),
}


def golden(shared: Path, model: str) -> tuple[Path, int8calib.Net, CalibrationTable, list]:
    folder = shared / "models" / model
    caffemodel, size, norm = MODELS[model]
    net = int8calib.load_caffe(folder / "deploy.prototxt", folder / caffemodel)
    home = shared / "golden" / f"ncnn_{model}"
    images = []
    for path in sorted((shared / "golden" / "png227").glob("*.png")):
        image = cv2.resize(cv2.imread(str(path)), (size, size)).astype(np.float32)
        image = (image - np.array([104, 117, 123], np.float32)) * np.float32(norm)
        images.append(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return home, net, read_table(home / "kl.table"), images


WINOGRAD = """7767517
2 2
Input data 0 1 data 0=28 1=28 2=%d
Convolution e 1 1 data e 0=64 1=3 4=1 5=1 6=%d 8=2
"""


def winograd_sums(folder: Path, levels: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """What ncnn makes of weight levels (64, C, 3, 3) and bottom levels (C, 28, 28)."""
    one = np.ones(64, np.float32)
    (folder / "w.param").write_text(WINOGRAD % (levels.shape[1], levels.size))
    (folder / "w.bin").write_bytes(layer_bytes(levels, 0 * one, one, 1.0))
    (found,) = run(folder / "w.param", folder / "w.bin", [bottom], "e")
    return found.reshape(64, 28, 28)


def plain_sums(levels: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    padded = np.pad(bottom.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    taps = [(i, j, padded[:, i : i + 28, j : j + 28]) for i in range(3) for j in range(3)]
    return sum(np.einsum("oc,chw->ohw", levels[:, :, i, j], view) for i, j, view in taps)


def test_winograd_holds_all_sums_that_a_grid_allows(tmp_path: Path) -> None:
    full = np.full((64, 26, 3, 3), 127.0)
    ones = np.full((26, 28, 28), 127, np.float32)
    assert 127 * np.abs(full[0]).sum() > WINOGRAD_SUM
    if np.abs(winograd_sums(tmp_path, full, ones) - plain_sums(full, ones)).max() < 2:
        pytest.skip("this processor does not run the layer by winograd")
    rng = np.random.default_rng(7)
    for channels in (8, 25, 64, 130):
        levels = rng.normal(0, 60, (64, channels, 3, 3))
        levels[::2] = np.abs(levels[::2])  # rows that add up, and rows that cancel
        sums = np.abs(levels).sum(axis=(1, 2, 3), keepdims=True)
        levels = np.trunc(levels * np.minimum(1, WINOGRAD_SUM / 127 / sums))
        levels = np.clip(levels, -127, 127)
        same = np.where(levels[0] >= 0, 1, -1).max(axis=(1, 2))[:, None, None]
        for bottom in (
            rng.integers(-127, 128, (channels, 28, 28)),
            127 * rng.integers(0, 2, (channels, 28, 28)),
            127 * same * np.ones((channels, 28, 28)),
        ):
            expected = plain_sums(levels, bottom)
            found = winograd_sums(tmp_path, levels, bottom.astype(np.float32))
            # Above 2**30 / 576 it divides by 576 in float32, which may be one off.
            off = np.abs(found - expected)
            assert off.max() <= 1
            assert off[np.abs(expected) < 2**30 / 576].max() == 0


def test_eight_bit_weights_run_by_winograd_on_a_real_model(tmp_path: Path, shared: Path) -> None:
    home, net, table, images = golden(shared, "squeezenet_v1.1")
    options = WeightOptions()
    rows = []
    limited = 0
    for layer in quantized_layers(fold_batch_norm(net.graph)):
        limited += options.limited(layer)
        scales = weight_scales(layer, options)
        rows.append(LayerScales(layer.name, scales, table[layer.name].bottom_scale))
    assert limited == 8
    finer = CalibrationTable(tuple(rows))
    (tmp_path / "net.bin").write_bytes(int8_bytes(home / "int8.param", net, finer))
    output = str(np.load(home / "outputs.npz")["output_blob"])
    live = run(home / "int8.param", tmp_path / "net.bin", images, output)
    simulated = int8calib.simulate(net, finer)
    found = [next(iter(simulated.forward({"data": image[None]}).values())) for image in images]
    assert sqnr(live, np.array(found).reshape(len(images), -1)) > 80


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_ncnn2int8s_to_the_last_bit(model: str, shared: Path) -> None:
    home, net, table, _ = golden(shared, model)
    expected = read_layers(home / "int8.param", home / "int8.bin")
    twins = int8_layers(fold_batch_norm(net.graph), table, optimized=True)
    assert list(twins) == list(expected)
    for name, (weight, bias) in expected.items():
        # ncnn2table gives dead channels the scale inf: their weights, 0 x inf, are of no account.
        alive = np.ones(table[name].weight_scales.size, bool)
        alive[list(table[name].dead_channels)] = False
        levels = twins[name].weights[0].reshape(alive.size, -1)
        np.testing.assert_array_equal(levels[alive], weight.reshape(alive.size, -1)[alive])
        np.testing.assert_array_equal(twins[name].weights[2], bias)


@pytest.mark.parametrize("model", MODELS)
def test_layers_fuse_where_ncnn2int8_fuses_them(model: str, shared: Path) -> None:
    home, net, table, _ = golden(shared, model)
    fused = set()
    for line in (home / "int8.param").read_text().splitlines():
        words = line.split()
        if any(word in ("8=101", "8=102") for word in words):
            fused.add(words[1])
    names = {layer.name for layer in table.layers}
    graph = fold_batch_norm(net.graph)
    assert set(requantized(graph, names, optimized=True)) == fused
    assert fused


@pytest.mark.parametrize("model", MODELS)
def test_real_models_give_what_ncnn_gives(model: str, shared: Path) -> None:
    home, net, table, images = golden(shared, model)
    stored = np.load(home / "outputs.npz")
    live = run(home / "int8.param", home / "int8.bin", images, str(stored["output_blob"]))
    simulated = int8calib.simulate(net, table)
    found = []
    for image in images:
        (top,) = simulated.forward({"data": image[None]}).values()
        found.append(top.reshape(-1))
    assert sqnr(live, np.array(found)) > 80
    np.testing.assert_array_equal(np.argmax(found, axis=1), live.argmax(axis=1))
    if model.startswith("squeezenet"):  # no depthwise layers: packing changes nothing
        assert sqnr(stored["int8"], np.array(found)) > 80
