"""Weight scales against naive loops, and the layers and levels they are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.calibration.scales import Grid, WeightOptions, dead_rows, weight_scales
from int8calib.errors import OptionError
from tests.generated import make_model

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 6 dim: 13 dim: 11 } } }
layer { name: "winograd" type: "Convolution" bottom: "data" top: "winograd"
  convolution_param { num_output: 6 kernel_size: 3 pad: 1 } }
layer { name: "strided" type: "Convolution" bottom: "winograd" top: "strided"
  convolution_param { num_output: 6 kernel_size: 3 stride: 2 } }
layer { name: "dilated" type: "Convolution" bottom: "strided" top: "dilated"
  convolution_param { num_output: 6 kernel_size: 3 dilation: 2 pad: 2 } }
layer { name: "wide" type: "Convolution" bottom: "dilated" top: "wide"
  convolution_param { num_output: 6 kernel_h: 1 kernel_w: 3 } }
layer { name: "grouped" type: "Convolution" bottom: "wide" top: "grouped"
  convolution_param { num_output: 4 group: 2 kernel_size: 3 } }
layer { name: "depthwise" type: "DepthwiseConvolution" bottom: "grouped" top: "depthwise"
  convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "up" type: "ReLU" bottom: "depthwise" top: "up" }
layer { name: "fc" type: "InnerProduct" bottom: "up" top: "fc"
  inner_product_param { num_output: 5 transpose: true } }
"""


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, QuantizedLayer]:
    net = int8calib.load_caffe(*make_model(tmp_path_factory.mktemp("scales"), NET))
    return {layer.name: layer for layer in quantized_layers(net.graph)}


def test_types_rows_and_winograd_follow_ncnn(layers: dict[str, QuantizedLayer]) -> None:
    found = {name: (layer.kind, layer.rows, layer.winograd) for name, layer in layers.items()}
    assert found == {
        "winograd": ("Convolution", 6, True),
        "strided": ("Convolution", 6, False),
        "dilated": ("Convolution", 6, False),
        "wide": ("Convolution", 6, False),
        "grouped": ("ConvolutionDepthWise", 2, False),
        "depthwise": ("ConvolutionDepthWise", 4, False),
        "fc": ("InnerProduct", 5, False),
    }


def naive_rows(layer: QuantizedLayer) -> list[list[float]]:
    """The weights of each scale, by index arithmetic on Caffe's layout."""
    weight = layer.layer.weights[0]
    if layer.name == "fc":
        return [[float(weight[i, o]) for i in range(weight.shape[0])] for o in range(layer.rows)]
    per_row = weight.shape[0] // layer.rows
    return [
        [float(w) for o in range(per_row) for w in weight[row * per_row + o].ravel()]
        for row in range(layer.rows)
    ]


@pytest.mark.parametrize("winograd", [True, False])
def test_absmax_scales_against_a_loop(layers: dict[str, QuantizedLayer], winograd: bool) -> None:
    for name, layer in layers.items():
        levels = 31 if winograd and name == "winograd" else 127
        expected = [levels / max(abs(w) for w in row) for row in naive_rows(layer)]
        found = weight_scales(layer, WeightOptions(winograd=winograd))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)


def test_six_bits_by_name(layers: dict[str, QuantizedLayer]) -> None:
    options = WeightOptions(winograd=False, six_bit=("str*",))
    assert options.levels(layers["strided"]) == 31
    assert options.levels(layers["winograd"]) == 127


def test_grids_hold_what_winograd_holds(layers: dict[str, QuantizedLayer]) -> None:
    limited = Grid(127, (2**31 - 1) // 576 / 127)
    assert WeightOptions().grid(layers["winograd"]) == limited
    assert WeightOptions().grid(layers["strided"]) == Grid(127)
    assert WeightOptions(winograd=False).grid(layers["winograd"]) == Grid(127)
    assert WeightOptions(six_bit=("w*",)).grid(layers["winograd"]) == Grid(31)
    assert WeightOptions(winograd=False, six_bit=("*",)).grid(layers["strided"]) == Grid(31)


@pytest.mark.parametrize("granularity", ["per-tensor", "per-group"])
def test_coarser_scales_repeat(layers: dict[str, QuantizedLayer], granularity: str) -> None:
    options = WeightOptions(granularity=granularity, winograd=False)
    for name, layer in layers.items():
        found = weight_scales(layer, options)
        rows = naive_rows(layer)
        if granularity == "per-group" and layer.kind == "ConvolutionDepthWise":
            expected = [127 / max(map(abs, row)) for row in rows]
        else:
            expected = [127 / max(abs(w) for row in rows for w in row)] * layer.rows
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)


def test_mse_scales_lose_no_more_than_absmax(layers: dict[str, QuantizedLayer]) -> None:
    def error(layer: QuantizedLayer, scales: np.ndarray) -> np.ndarray:
        rows = layer.weight_rows().astype(np.float64)
        quantized = np.clip(np.round(rows * scales[:, None]), -127, 127) / scales[:, None]
        return ((rows - quantized) ** 2).sum(axis=1)

    gained = 0
    for layer in layers.values():
        absmax = error(layer, weight_scales(layer, WeightOptions(winograd=False)))
        mse = error(layer, weight_scales(layer, WeightOptions(winograd=False, method="mse")))
        assert (mse <= absmax * (1 + 1e-5)).all()
        gained += int((mse < absmax * 0.999).sum())
    assert gained > 0


def test_dead_rows_get_one(layers: dict[str, QuantizedLayer]) -> None:
    from dataclasses import replace

    weight = layers["strided"].layer.weights[0].copy()
    weight[2], weight[4] = 0, 1e-37
    layer = replace(layers["strided"], weights=weight)
    scales = weight_scales(layer)
    assert dead_rows(layer, WeightOptions()) == (2, 4)
    assert scales[2] == scales[4] == 1
    assert np.isfinite(scales).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"granularity": "per-pixel"}, "'per-pixel'; expected one of per-channel"),
        ({"method": "magic"}, "'magic'; expected one of absmax"),
    ],
)
def test_unknown_names_are_refused(given: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        WeightOptions(**given)


def test_golden_weight_scales(shared: Path) -> None:
    from int8calib.table import read_table

    folder = shared / "models/squeezenet_v1.0"
    net = int8calib.load_caffe(folder / "deploy.prototxt", folder / "squeezenet_v1.0.caffemodel")
    layers = {layer.name: layer for layer in quantized_layers(net.graph)}
    for name, method in [("kl", "absmax"), ("aciq", "aciq")]:
        golden = read_table(shared / f"golden/squeezenet_v1.0.ncnn2table_{name}.table")
        assert [row.name for row in golden.layers] == list(layers)
        for row in golden.layers:
            found = weight_scales(layers[row.name], WeightOptions(method=method))
            np.testing.assert_allclose(found, row.weight_scales, rtol=1e-4, err_msg=row.name)
