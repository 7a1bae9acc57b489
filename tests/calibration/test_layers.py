"""Layers described without a framework: what follows from what, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from int8calib.calibration.layers import QuantLayer
from int8calib.calibration.scales import WeightOptions, weight_scales
from int8calib.errors import ModelError, WeightsError

RNG = np.random.default_rng(37)
SQUARE = RNG.normal(0, 1, (11, 7, 3, 3)).astype(np.float32)


def test_rows_and_kernel_follow_from_the_weights() -> None:
    layer = QuantLayer("c", "Convolution", "x", SQUARE[:, :, :, :2])
    assert (layer.rows, layer.kernel, layer.winograd) == (11, (3, 2), False)
    grouped = QuantLayer("d", "ConvolutionDepthWise", "x", SQUARE[:10, :1], group=5)
    assert (grouped.rows, grouped.weight_rows().shape) == (5, (5, 2 * 9))
    np.testing.assert_array_equal(grouped.weight_rows()[2], SQUARE[4:6, :1].reshape(-1))
    dense = QuantLayer("f", "InnerProduct", "x", SQUARE.reshape(11, -1).astype(np.float64))
    assert (dense.rows, dense.weight_rows().dtype) == (11, np.float32)


def test_winograd_is_for_3x3_convolutions_of_stride_1() -> None:
    assert QuantLayer("c", "Convolution", "x", SQUARE).winograd
    # Each group of a grouped one runs as a convolution of its own.
    assert QuantLayer("d", "ConvolutionDepthWise", "x", SQUARE[:10], group=5).winograd
    wide = RNG.normal(0, 1, (11, 7, 3, 5))
    for given in ({"stride": (2, 1)}, {"dilation": (1, 2)}, {"weights": wide}):
        assert not QuantLayer("c", "Convolution", "x", **{"weights": SQUARE, **given}).winograd
    dense = QuantLayer("f", "InnerProduct", "x", SQUARE.reshape(11, -1), kernel=(3, 3))
    assert not dense.winograd


def test_weights_are_asked_for_only_where_they_are_needed() -> None:
    asked = []

    def weights() -> np.ndarray:
        asked.append(1)
        return SQUARE

    layer = QuantLayer("c", "Convolution", "x", weights, rows=11, kernel=(3, 3))
    assert layer.winograd
    assert not asked
    expected = 127 / np.abs(SQUARE).max(axis=(1, 2, 3))
    np.testing.assert_allclose(weight_scales(layer), expected, 1e-6)
    before = len(asked)
    weight_scales(layer)
    assert len(asked) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "Deconvolution"}, "layer 'c': kind 'Deconvolution'; expected one of Convolution"),
        ({"group": 5}, "layer 'c': Convolution with group 5"),
        ({"kind": "ConvolutionDepthWise", "group": 0}, "with group 0"),
        ({"weights": None}, "needs its weights, or the number of its rows"),
        ({"weights": None, "rows": 5}, "needs its kernel size"),
        ({"weights": SQUARE.reshape(11, -1)}, "needs its kernel size"),
    ],
)
def test_parts_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        QuantLayer(**{"name": "c", "kind": "Convolution", "blob": "x", "weights": SQUARE, **given})


def test_missing_weights_are_missed_where_they_are_needed() -> None:
    layer = QuantLayer("c", "Convolution", "x", rows=11, kernel=(3, 3))
    with pytest.raises(WeightsError, match="layer 'c': has no weights"):
        weight_scales(layer)
    layer = QuantLayer("c", "Convolution", "x", lambda: SQUARE[:7], rows=11, kernel=(3, 3))
    with pytest.raises(WeightsError, match=r"weights of shape \(7, 7, 3, 3\) make no 11 rows"):
        weight_scales(layer)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 977.0])
def test_six_bit_weights_stay_within_31_levels(granularity: str, scale: float) -> None:
    # Many values of a normal distribution: the least squared error would clip some.
    weights = (RNG.normal(0, scale, (11, 97, 3, 3))).astype(np.float32)
    layer = QuantLayer("c", "Convolution", "x", weights)
    for options in (
        WeightOptions(granularity=granularity, method="mse", winograd="6bit"),
        WeightOptions(granularity=granularity, method="mse", winograd="off", six_bit=("c",)),
    ):
        scales = weight_scales(layer, options).reshape(-1, 1, 1, 1)
        # As ncnn rounds: half away from zero.
        levels = np.floor(np.abs(weights.astype(np.float64)) * scales + 0.5)
        assert levels.max() == 31


CONV = np.random.default_rng(3).normal(size=(8, 3, 3, 3))


@pytest.mark.parametrize(
    "given",
    [
        {"kernel": 3, "stride": 1, "dilation": 1},
        {"kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1]},
        {"stride": np.array([1, 1]), "dilation": np.int64(1)},
    ],
)
def test_a_window_may_be_given_as_one_number_or_a_list(given: dict[str, Any]) -> None:
    """Lists compare unequal to tuples: such a layer would miss the limit of int8 winograd."""
    layer = QuantLayer("c", "Convolution", "x", CONV, **given)
    assert layer.winograd
    assert (layer.kernel, layer.stride, layer.dilation) == ((3, 3), (1, 1), (1, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": b"c"}, r"name b'c'; expected text"),
        ({"name": ""}, r"name ''; expected text"),
        ({"blob": None}, r"blob None; expected text"),
        ({"stride": 0}, r"stride 0; expected height and width"),
        ({"stride": (1, 2, 3)}, r"stride \(1, 2, 3\); expected height and width"),
        ({"dilation": "11"}, r"dilation '11'; expected height and width"),
        ({"kernel": (5, 5)}, r"kernel \(5, 5\) and weights of shape \(8, 3, 3, 3\)"),
        ({"kind": "ConvolutionDepthWise", "group": 3}, r"its 8 outputs make no 3 groups"),
        ({"kind": "ConvolutionDepthWise", "group": "8"}, r"group '8'; expected a whole number"),
        ({"weights": CONV * 1j}, r"weights of type complex128; expected an array of floats"),
        ({"weights": CONV > 0}, r"weights of type bool; expected an array of floats"),
        ({"weights": [[1.0], [2.0, 3.0]]}, r"weights of type list, of which numpy makes no array"),
    ],
)
def test_values_that_mean_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    parts = {"name": "c", "kind": "Convolution", "blob": "x", "weights": CONV, **given}
    with pytest.raises(ModelError, match=message):
        QuantLayer(**parts)


@pytest.mark.parametrize("wrong", [np.nan, -np.inf, 1e300])
def test_weights_are_finite_numbers(wrong: float) -> None:
    weights = CONV.copy()
    weights[2, 1, 0, 2] = wrong
    layer = QuantLayer("c", "Convolution", "x", weights)
    with pytest.raises(WeightsError, match="layer 'c': 1 of its 216 weights are NaN or infinite"):
        layer.weight_rows()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: CONV * 1j, "weights of type complex128"),
        (lambda: "abc", "weights of type <U3"),
        (lambda: CONV * np.nan, "216 of its 216 weights are NaN"),
    ],
)
def test_weights_of_a_function_are_looked_at_when_they_come(weights: Any, message: str) -> None:
    layer = QuantLayer("c", "Convolution", "x", weights, rows=8, kernel=(3, 3))
    with pytest.raises(WeightsError, match=message):
        layer.weight_rows()


def test_a_function_may_give_lists() -> None:
    layer = QuantLayer("c", "Convolution", "x", CONV.tolist, rows=8, kernel=(3, 3))
    np.testing.assert_array_equal(layer.weight_rows(), CONV.reshape(8, -1).astype(np.float32))
