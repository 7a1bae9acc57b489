"""Weight scales against naive loops, and the layers and levels they are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.calibration.layers import QuantLayer
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
        "grouped": ("ConvolutionDepthWise", 2, True),
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


@pytest.mark.parametrize("winograd", ["safe", "6bit", "off"])
def test_absmax_scales_against_a_loop(layers: dict[str, QuantizedLayer], winograd: str) -> None:
    for name, layer in layers.items():
        # Rows of 54 weights: 127 levels are safe.
        levels = 31 if winograd == "6bit" and name == "winograd" else 127
        expected = [levels / max(abs(w) for w in row) for row in naive_rows(layer)]
        found = weight_scales(layer, WeightOptions(winograd=winograd))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)


def test_six_bits_by_name(layers: dict[str, QuantizedLayer]) -> None:
    options = WeightOptions(winograd="off", six_bit=("str*",))
    assert options.levels(layers["strided"]) == 31
    assert options.levels(layers["winograd"]) == 127


def test_six_bits_by_the_rule_of_each_tool(layers: dict[str, QuantizedLayer]) -> None:
    def six(options: WeightOptions) -> list[str]:
        return [name for name, layer in layers.items() if options.levels(layer) == 31]

    assert six(WeightOptions(winograd="6bit")) == ["winograd"]  # ncnn2table: no groups
    assert six(WeightOptions(winograd="6bit", any_dilation=True)) == ["winograd", "dilated"]
    assert six(WeightOptions()) == six(WeightOptions(winograd="off")) == []


def test_grids_hold_what_winograd_holds(layers: dict[str, QuantizedLayer]) -> None:
    limited = Grid(127, 29356)
    assert WeightOptions().grid(layers["winograd"]) == limited
    assert WeightOptions().grid(layers["grouped"]) == limited
    assert WeightOptions().grid(layers["strided"]) == Grid(127)
    assert WeightOptions(winograd="off").grid(layers["winograd"]) == Grid(127)
    assert WeightOptions(winograd="6bit").grid(layers["winograd"]) == Grid(31)
    assert WeightOptions(six_bit=("w*",)).grid(layers["winograd"]) == Grid(31, 29356)
    assert WeightOptions(winograd="off", six_bit=("*",)).grid(layers["strided"]) == Grid(31)


def naive_sum(weights: list[float], scale: float) -> int:
    """What ncnn's levels of one output add up to, one weight after the other."""
    total = 0
    for w in weights:
        scaled = np.float32(w) * np.float32(scale)
        total += min(127, int(np.float32(abs(scaled)) + np.float32(0.5)))
    return total


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("method", ["absmax", "mse", "aciq"])
@pytest.mark.parametrize("group", [1, 2])
def test_safe_levels_are_the_most_that_winograd_holds(
    granularity: str, method: str, group: int
) -> None:
    rng = np.random.default_rng(13)
    weights = rng.normal(0, 1, (4, 141, 3, 3)).astype(np.float32)
    weights[:2] = rng.choice([-1, 1], (2, 141, 3, 3))  # all as large: few levels
    weights[2] *= 0.05
    weights[2, 7, 1, 1] = 4  # one large weight: 127 levels
    kind = "Convolution" if group == 1 else "ConvolutionDepthWise"
    layer = QuantLayer("c", kind, "x", weights, group=group)
    scales = weight_scales(layer, WeightOptions(granularity, method))
    plain = weight_scales(layer, WeightOptions(granularity, method, winograd="off"))
    rows = weights.reshape(layer.rows, 4 // layer.rows, -1)

    def full(row: np.ndarray, scale: np.float32) -> bool:
        """Whether a scale is of the most whole levels that a row's outputs hold."""
        absmax = np.abs(row).max()
        levels = round(float(scale * absmax))
        more = max(naive_sum(output.tolist(), (levels + 1) / absmax) for output in row)
        return bool(scale == np.float32(levels) / absmax and more > 29356)

    limited = 0
    for index, scale in enumerate(scales):
        own = rows[index : index + 1] if granularity == "per-channel" else rows
        sums = [naive_sum(output.tolist(), scale) for row in own for output in row]
        assert max(sums) <= 29356
        if scale != plain[index]:
            limited += 1
            assert scale < plain[index]
            assert any(full(row, scale) for row in own)
    assert limited
    if granularity == "per-channel" and group == 1:
        assert scales[2] == plain[2]


def test_31_levels_are_not_safe_beyond_105_channels() -> None:
    weights = np.ones((3, 106, 3, 3), np.float32)
    layer = QuantLayer("c", "Convolution", "x", weights)
    six = weight_scales(layer, WeightOptions(winograd="6bit"))
    assert naive_sum(weights[0].ravel().tolist(), six[0]) > 29356
    safe = weight_scales(layer)
    np.testing.assert_array_equal(safe, 30)


@pytest.mark.parametrize("granularity", ["per-tensor", "per-group"])
def test_coarser_scales_repeat(layers: dict[str, QuantizedLayer], granularity: str) -> None:
    options = WeightOptions(granularity=granularity, winograd="off")
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
        absmax = error(layer, weight_scales(layer, WeightOptions(winograd="off")))
        mse = error(layer, weight_scales(layer, WeightOptions(winograd="off", method="mse")))
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
        ({"winograd": True}, "winograd True; expected one of safe, 6bit, off"),
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
            options = WeightOptions(method=method, winograd="6bit")
            found = weight_scales(layers[row.name], options)
            np.testing.assert_allclose(found, row.weight_scales, rtol=1e-4, err_msg=row.name)
