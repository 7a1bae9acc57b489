"""Weights given as levels: what ncnn computes of them, and what it could not hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib.errors import WeightsError
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.quantize import Rows, quantize_model
from int8calib.ncnn.rounded import RoundedWeights
from tests.ncnn.runtime import run_blobs

RNG = np.random.default_rng(17)
KINDS = {
    "Convolution": {0: 5, 1: 3, 4: 1, 6: 5 * 7 * 9},
    "ConvolutionDepthWise": {0: 14, 1: 3, 4: 1, 6: 14 * 9, 7: 7},
    "InnerProduct": {0: 5, 2: 5 * 7 * 11 * 13},
}
SCALES = {"Convolution": 5, "ConvolutionDepthWise": 7, "InnerProduct": 5}
Layers = tuple[NcnnLayer, ...]


def model(kind: str, *, bias: bool) -> tuple[Layers, Rows]:
    params = dict(KINDS[kind])
    size, outputs = params[2 if kind == "InnerProduct" else 6], params[0]
    weights: tuple[np.ndarray, ...] = (RNG.normal(0, 1, size).astype(np.float32),)
    if bias:
        params[1 if kind == "InnerProduct" else 5] = 1
        weights += (RNG.normal(0, 1, outputs).astype(np.float32),)
    source = NcnnLayer("Input", "data", (), ("data",), {0: 13, 1: 11, 2: 7})
    layer = NcnnLayer(kind, "c", ("data",), ("top",), params, weights)
    scales = RNG.uniform(20, 40, SCALES[kind]).astype(np.float32)
    return (source, layer), Rows({"c_param_0": scales}, {"c": np.array([0.5], np.float32)})


def naive(kind: str, levels: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whole sums of each output, by loops over its window."""
    if kind == "InnerProduct":
        return levels.reshape(5, -1).astype(np.int64) @ x.reshape(-1)
    outputs, groups = KINDS[kind][0], KINDS[kind].get(7, 1)
    weight = levels.reshape(outputs, -1, 3, 3).astype(np.int64)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    sums = np.zeros((outputs, 11, 13), np.int64)
    per_group = outputs // groups
    for o, i, j in np.ndindex(sums.shape):
        first = o // per_group * weight.shape[1]
        window = padded[first : first + weight.shape[1], i : i + 3, j : j + 3]
        sums[o, i, j] = (weight[o] * window).sum()
    return sums


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_ncnn_multiplies_by_the_levels_that_are_given(
    kind: str, bias: bool, tmp_path: Path
) -> None:
    pytest.importorskip("ncnn")
    layers, rows = model(kind, bias=bias)
    weights = layers[1].weights[0]
    levels = RNG.integers(-127, 128, weights.size)
    new_bias = RNG.normal(0, 50, layers[1].integer(0)).astype(np.float32)
    given = {"c": RoundedWeights(levels, new_bias, weights)}
    made = quantize_model(layers, rows, rounded=given)
    x = RNG.integers(-127, 128, (7, 11, 13))
    bottom = (x / 0.5).astype(np.float32)
    (found,) = run_blobs(made, {"data": bottom}, ["top"], packing=False, folder=tmp_path)
    scales = np.repeat(rows.weights["c_param_0"], len(new_bias) // SCALES[kind])
    shape = (-1,) + (1,) * (found.ndim - 1)
    expected = naive(kind, levels, x) / (0.5 * scales).reshape(shape) + new_bias.reshape(shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": np.full(315, 128)}, "levels that are no whole numbers within -127..127"),
        ({"levels": np.full(315, -128, np.int8)}, "no whole numbers within -127..127"),
        ({"levels": np.full(315, 0.5)}, "no whole numbers within -127..127"),
        ({"levels": np.full(315, np.nan)}, "no whole numbers within -127..127"),
        ({"levels": np.zeros(314)}, "314 levels and 5 biases; it has 315 weights and 5 outputs"),
        ({"bias": np.zeros(4, np.float32)}, "315 levels and 4 biases"),
    ],
)
def test_levels_that_do_not_fit_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    layers, rows = model("Convolution", bias=True)
    given = RoundedWeights(np.zeros(315), np.zeros(5, np.float32), layers[1].weights[0])
    quantize_model(layers, rows, rounded={"c": given})
    with pytest.raises(WeightsError, match=rf"layer 'c': .*{message}"):
        quantize_model(layers, rows, rounded={"c": replace(given, **change)})


def test_levels_of_a_layer_in_float_are_refused() -> None:
    layers, rows = model("Convolution", bias=True)
    given = RoundedWeights(np.zeros(315), np.zeros(5, np.float32), layers[1].weights[0])
    with pytest.raises(WeightsError, match=r"layer 'other': .*stays in float"):
        quantize_model(layers, rows, rounded={"other": given})


@pytest.mark.parametrize(
    ("params", "groups"), [({1: 3}, 1), ({1: 3}, 2), ({1: 3, 3: 2}, 1), ({1: 3, 12: 2}, 1)]
)
def test_levels_that_winograd_cannot_hold_are_refused(params: dict[int, int], groups: int) -> None:
    outputs, inputs = 4, 26  # 26 x 9 x 127 is above 29356, 25 x 9 x 127 below
    size = outputs * inputs * 9
    kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
    params = {**params, 0: outputs, 6: size} | ({7: groups} if groups > 1 else {})
    weights = RNG.normal(0, 1, size).astype(np.float32)
    source = NcnnLayer("Input", "data", (), ("data",), {0: 13, 1: 11, 2: inputs * groups})
    layer = NcnnLayer(kind, "c", ("data",), ("top",), params, (weights,))
    count = outputs if groups == 1 else groups
    rows = Rows({"c_param_0": np.full(count, 30, np.float32)}, {"c": np.ones(1, np.float32)})
    levels = np.zeros((outputs, inputs * 9), np.int64)
    levels[2] = -127
    given = RoundedWeights(levels, np.zeros(outputs, np.float32), weights)
    quantize_model((source, layer), rows, rounded={"c": given}, winograd=False)
    if params.get(3, 1) > 1 or params.get(12, 1) > 1:
        quantize_model((source, layer), rows, rounded={"c": given})
        return
    with pytest.raises(WeightsError, match="add up to 29718; int8 winograd holds 29356"):
        quantize_model((source, layer), rows, rounded={"c": given})
    levels[2, 9 * 25 :] = 0
    quantize_model((source, layer), rows, rounded={"c": replace(given, levels=levels)})
