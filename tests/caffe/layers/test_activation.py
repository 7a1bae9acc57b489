"""Activations against OpenCV or numpy's own functions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from int8calib.errors import ShapeError
from tests.layer_cases import Case, check
from tests.ncnn_layer import ncnn_layer, stacked


def by_value(function):
    """An oracle that maps each value by itself in double precision."""

    def oracle(params, weights, bottoms):
        return [np.vectorize(lambda x: function(params, x))(bottoms[0].astype(np.float64))]

    return oracle


def crelu(params, weights, bottoms):
    (x,) = bottoms
    top = np.empty((x.shape[0], 2 * x.shape[1], *x.shape[2:]))
    for n, c in np.ndindex(*x.shape[:2]):
        top[n, c] = (np.abs(x[n, c]) + x[n, c]) / 2
        top[n, c + x.shape[1]] = (np.abs(x[n, c]) - x[n, c]) / 2
    return [top]


def wide(rng, shape):
    """Values beyond all limits."""
    return rng.normal(1, 5, shape)


def in_ncnn(relu, clip):
    """ncnn's ReLU with its Clip behind."""

    def oracle(params, weights, bottoms):
        tops = stacked(ncnn_layer("ReLU", relu, bottoms))
        return stacked(ncnn_layer("Clip", clip, tops))

    return oracle


def selu(params, weights, bottoms):
    """ncnn's SELU."""
    alpha, scale = params.selu_param.alpha, getattr(params.selu_param, "lambda")
    return stacked(ncnn_layer("SELU", f"0={alpha:e} 1={scale:e}", bottoms))


CASES = (
    Case("ReLU"),
    Case("ReLU", bottoms=((3, 13),)),
    Case("ReLU", "relu_param { negative_slope: 0.17 }"),
    Case("ReLU", "relu_param { negative_slope: 1.7 }"),
    *(Case("ReLU", f"relu_param {{ {options} }}", oracle=oracle, makers=(wide,))
      for options, oracle in (
          ("relu6: true", by_value(lambda p, x: min(max(x, 0), 6))),
          ("relu6: true negative_slope: 0.17", in_ncnn("0=0.17e0", "0=-3.4e38 1=6.0")),
          ("maximum: 2.5", in_ncnn("0=0.0", "0=-3.4e38 1=2.5")),
          ("relu6: true maximum: 7", in_ncnn("0=0.0", "0=-3.4e38 1=6.0")),
          ("minimum: 0.7 maximum: 2.5", in_ncnn("0=0.0", "0=0.7 1=2.5")),
          ("minimum: -0.3 negative_slope: 0.5", in_ncnn("0=0.5", "0=-0.3 1=3.4e38")),
          # The lower limit comes last, and a maximum below 0 is none.
          ("minimum: 3 maximum: 2", by_value(lambda p, x: 3)),
          ("maximum: -2", by_value(lambda p, x: max(x, 0))),
      )),
    Case("SeLU", oracle=selu, makers=(wide,)),
    Case("SeLu", "selu_param { lambda: 1.3 alpha: 0.7 }", oracle=selu, makers=(wide,)),
    Case("Dropout", "dropout_param { dropout_ratio: 0.7 }", oracle=lambda p, w, b: [b[0]]),
    Case("Dropout", "dropout_param { dropout_ratio: 0.7 scale_train: true }",
         oracle=lambda p, w, b: [b[0]]),
    Case("Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }",
         oracle=lambda p, w, b: stacked(ncnn_layer("Dropout", "0=0.7", b))),
    Case("ReLU6", oracle=by_value(lambda p, x: min(max(x, 0), 6)),
         makers=(lambda rng, shape: rng.normal(2, 5, shape),)),
    Case("PReLU"),
    Case("PReLU", bottoms=((3, 13),)),
    Case("PReLU", "prelu_param { channel_shared: true }",
         oracle=lambda p, w, b: [np.where(b[0] > 0, b[0], b[0] * w[0])]),
    Case("ELU", oracle=by_value(lambda p, x: x if x > 0 else math.exp(x) - 1)),
    Case("ELU", "elu_param { alpha: 0.7 }",
         oracle=by_value(lambda p, x: x if x > 0 else 0.7 * (math.exp(x) - 1))),
    Case("Sigmoid"),
    Case("Sigmoid", label="large values",
         makers=(lambda rng, shape: rng.normal(0, 300, shape),),
         oracle=by_value(lambda p, x: 0.5 * (1 + math.tanh(x / 2)))),
    Case("TanH"),
    Case("Swish", oracle=by_value(lambda p, x: x / (1 + math.exp(-x)))),
    Case("Swish", "swish_param { beta: 1.9 }",
         oracle=by_value(lambda p, x: x / (1 + math.exp(-1.9 * x)))),
    Case("HardSwish", makers=(lambda rng, shape: rng.normal(0, 4, shape),),
         oracle=by_value(lambda p, x: 0 if x < -3 else x if x > 3 else x * (x + 3) / 6)),
    Case("Mish", oracle=by_value(lambda p, x: x * math.tanh(math.log1p(math.exp(x))))),
    Case("BNLL"),
    Case("BNLL", label="large values", makers=(lambda rng, shape: rng.normal(0, 60, shape),),
         oracle=by_value(lambda p, x: max(x, 0) + math.log1p(math.exp(-abs(x))))),
    Case("Clip", "clip_param { min: -0.7 max: 1.3 }",
         oracle=by_value(lambda p, x: min(max(x, np.float32(-0.7)), np.float32(1.3)))),
    Case("Threshold", oracle=by_value(lambda p, x: float(x > 0))),
    Case("Threshold", "threshold_param { threshold: 0.4 }",
         oracle=by_value(lambda p, x: float(x > np.float32(0.4)))),
    Case("CReLU", oracle=crelu),
    Case("Softmax"),
    Case("Softmax", bottoms=((3, 13),)),
    Case("Softmax", "softmax_param { axis: 2 }"),
    Case("Softmax", "softmax_param { axis: -1 }"),
    Case("Softmax", label="large values", makers=(lambda rng, shape: rng.normal(0, 90, shape),)),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("name", ["ReLU", "Sigmoid", "Dropout", "Power"])
def test_a_second_bottom_is_not_passed_over(name: str) -> None:
    # A fork's ReLU takes its upper limit from a second bottom.
    case = Case(name, bottoms=((2, 5, 7, 11), (1,)))
    with pytest.raises(ShapeError, match="2 bottoms; expected 1"):
        case.kind.shape(case.message(), case.bottoms)


def test_an_option_that_is_no_number_is_refused() -> None:
    case = Case("ELU", "elu_param { alpha: nan }")
    with pytest.raises(ShapeError, match=r"elu_param\.alpha is nan"):
        case.kind.shape(case.message(), case.bottoms)
