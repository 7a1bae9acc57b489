"""Activations against OpenCV or numpy's own functions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.layer_cases import Case, check


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


CASES = (
    Case("ReLU"),
    Case("ReLU", bottoms=((3, 13),)),
    Case("ReLU", "relu_param { negative_slope: 0.17 }"),
    Case("ReLU", "relu_param { negative_slope: 1.7 }"),
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
