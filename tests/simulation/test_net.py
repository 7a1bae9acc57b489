"""Whole simulated nets: what runs in INT8, what folds, which scale counts where layers fuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.simulation.fusion import input_scales
from int8calib.table.model import CalibrationTable, LayerScales
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> int8calib.Net:
    return int8calib.load_caffe(*make_model(tmp_path_factory.mktemp("odd"), NET))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 60, (3, 3, 37, 29)).astype(np.float32)


def absmax_table(net: int8calib.Net, images: np.ndarray, *, fold: bool, **meta: object):  # type: ignore[no-untyped-def]
    graph = fold_batch_norm(net.graph) if fold else net.graph
    running = int8calib.Net(graph, net.input_shapes)
    rows = []
    for layer in quantized_layers(graph):
        seen: list[np.ndarray] = []

        def on_top(name: str, blob: str, top: np.ndarray, seen=seen, layer=layer) -> None:  # type: ignore[no-untyped-def]
            if name == graph.producer(layer.bottom).name:
                seen.append(np.abs(top).max())

        running.forward({"data": images}, on_top)
        scales = 127 / np.abs(layer.weight_rows()).max(axis=1)
        rows.append(LayerScales(layer.name, scales.astype(np.float32), float(127 / max(seen))))
    return CalibrationTable(tuple(rows), meta=meta)


def test_int8_is_near_float_and_not_float(net: int8calib.Net, images: np.ndarray) -> None:
    simulated = int8calib.simulate(net, absmax_table(net, images, fold=True))
    assert sum(layer.type.startswith("Int8") for layer in simulated.graph.layers) == 5
    (expected,) = net.forward({"data": images}, outputs=["fc"]).values()
    (found,) = simulated.forward({"data": images}, outputs=["fc"]).values()
    error = np.square(found - expected).sum() / np.square(expected).sum()
    assert 1e-6 < error < 1e-2  # 20 to 60 dB
    assert list(simulated.forward({"data": images})) == list(net.forward({"data": images}))


def test_without_rows_everything_stays_float(net: int8calib.Net, images: np.ndarray) -> None:
    simulated = int8calib.simulate(net, CalibrationTable(()), fold_bn=False)
    for name, top in simulated.forward({"data": images}).items():
        np.testing.assert_array_equal(top, net.forward({"data": images})[name])


def test_layers_before_the_first_int8_layer_do_not_change(
    net: int8calib.Net, images: np.ndarray
) -> None:
    table = absmax_table(net, images, fold=True)
    only_last = CalibrationTable(table.layers[-1:])
    folded = int8calib.Net(fold_batch_norm(net.graph), net.input_shapes)
    simulated = int8calib.simulate(net, only_last)
    tops: list[dict[str, np.ndarray]] = []
    for each in (folded, simulated):
        seen: dict[str, np.ndarray] = {}
        each.forward({"data": images}, lambda n, b, t, seen=seen: seen.update({n: t.copy()}))
        tops.append(seen)
    changed = [name for name in tops[0] if (tops[0][name] != tops[1][name]).any()]
    assert changed == ["fc", "prob"]


def test_a_batch_is_its_images_one_by_one(net: int8calib.Net, images: np.ndarray) -> None:
    simulated = int8calib.simulate(net, absmax_table(net, images, fold=True))
    (together,) = simulated.forward({"data": images}).values()
    for i in range(len(images)):
        (alone,) = simulated.forward({"data": images[i : i + 1]}).values()
        np.testing.assert_array_equal(together[i : i + 1], alone)


def test_folding_follows_the_table_unless_told(net: int8calib.Net, images: np.ndarray) -> None:
    raw = absmax_table(net, images, fold=False, options={"fold_bn": False})
    assert "conv1/bn" in [layer.name for layer in int8calib.simulate(net, raw).graph.layers]
    told = int8calib.simulate(net, raw, fold_bn=True)
    assert "conv1/bn" not in [layer.name for layer in told.graph.layers]
    silent = CalibrationTable(raw.layers)
    assert "conv1/bn" not in [layer.name for layer in int8calib.simulate(net, silent).graph.layers]
    (expected,) = net.forward({"data": images}, outputs=["fc"]).values()
    (found,) = int8calib.simulate(net, raw).forward({"data": images}, outputs=["fc"]).values()
    assert np.square(found - expected).sum() < 1e-2 * np.square(expected).sum()


FAN = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 7 dim: 11 } } }
layer { name: "a" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: "a/relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Convolution" bottom: "a" top: "b"
  convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: "c" type: "Convolution" bottom: "a" top: "c"
  convolution_param { num_output: 5 kernel_size: 3 pad: 1 } }
%s
"""
SCALES = {"a": np.float32(1), "b": np.float32(2), "c": np.float32(3), "d": np.float32(4)}


@pytest.mark.parametrize(
    ("more", "without", "optimized", "b", "c"),
    [
        ("", "", True, 3, 3),  # both read what was rounded for the last of them
        ("", "", False, 2, 3),  # the ReLU stays a layer of its own
        ("", "c", True, 2, 3),  # a reader in float keeps the top in float
        ("", "a", True, 2, 3),
        ('layer { name: "p" type: "Sigmoid" bottom: "a" top: "p" }', "", True, 2, 3),
        (
            'layer { name: "d" type: "InnerProduct" bottom: "a" top: "d" '
            "inner_product_param { num_output: 2 } }",
            "",
            True,
            2,
            3,
        ),
    ],
)
def test_requantized_tops_have_one_scale(
    more: str, without: str, optimized: bool, b: float, c: float, tmp_path: Path
) -> None:
    graph = int8calib.load_caffe(*make_model(tmp_path, FAN % more)).graph
    names = {layer.name for layer in graph.layers}
    scales = {n: s for n, s in SCALES.items() if n in names and n != without}
    used = input_scales(graph, scales, optimized=optimized)
    assert used.get("a", 1) == 1
    assert used["b"] == b
    assert used.get("c", c) == c


def test_leaving_nothing_out_of_two_activations(tmp_path: Path) -> None:
    """Only one activation fuses: behind a second one the top is float."""
    more = """
layer { name: "r1" type: "ReLU" bottom: "b" top: "b" }
layer { name: "r2" type: "Sigmoid" bottom: "b" top: "b" }
layer { name: "d" type: "Convolution" bottom: "b" top: "d"
  convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "e" type: "Convolution" bottom: "b" top: "e"
  convolution_param { num_output: 2 kernel_size: 1 } }
"""
    graph = int8calib.load_caffe(*make_model(tmp_path, FAN % more)).graph
    used = input_scales(graph, {**SCALES, "e": np.float32(5)}, optimized=True)
    assert (used["d"], used["e"]) == (4, 5)
