"""Powers, exponentials, logarithms and reductions against OpenCV and numpy in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_proto import caffe_pb2
from int8calib.errors import ShapeError
from tests.layer_cases import Case, check, positive


def power(params, weights, bottoms):
    param = params.power_param
    return [(param.shift + param.scale * np.asarray(bottoms[0], np.float64)) ** param.power]


def exponential(params, weights, bottoms):
    param = params.exp_param
    base = math.e if param.base == -1 else param.base
    return [base ** (param.shift + param.scale * np.asarray(bottoms[0], np.float64))]


def logarithm(params, weights, bottoms):
    param = params.log_param
    base = math.e if param.base == -1 else param.base
    inner = param.shift + param.scale * np.asarray(bottoms[0], np.float64)
    return [np.log2(inner) / math.log2(base)]


def reduction(params, weights, bottoms):
    param, x = params.reduction_param, np.asarray(bottoms[0], np.float64)
    axes = tuple(range(param.axis % x.ndim, x.ndim))
    names = caffe_pb2.ReductionParameter.ReductionOp.Name
    folded = {
        "SUM": lambda: x.sum(axis=axes),
        "ASUM": lambda: np.abs(x).sum(axis=axes),
        "SUMSQ": lambda: (x * x).sum(axis=axes),
        "MEAN": lambda: x.mean(axis=axes),
    }[names(param.operation)]()
    return [folded * param.coeff]


def argmax(params, weights, bottoms):
    """Sort (value, index) pairs downwards, as Caffe does."""
    param, x = params.argmax_param, bottoms[0]
    whole = not param.HasField("axis")
    moved = x.reshape(len(x), -1) if whole else np.moveaxis(x, param.axis, -1)
    index = np.empty((*moved.shape[:-1], param.top_k))
    value = np.empty_like(index)
    for place in np.ndindex(*moved.shape[:-1]):
        pairs = sorted(((v, i) for i, v in enumerate(moved[place])), reverse=True)[: param.top_k]
        value[place], index[place] = zip(*pairs, strict=True)
    if not whole:
        return [np.moveaxis(value if param.out_max_val else index, -1, param.axis)]
    tail = (1,) * max(0, x.ndim - 3)
    top = np.stack([index, value], axis=1) if param.out_max_val else index[:, None]
    return [top.reshape(*top.shape, *tail)]


def ties(rng, shape):
    return rng.integers(-3, 4, shape)


OPERATIONS = ("SUM", "ASUM", "SUMSQ", "MEAN")

CASES = (
    Case("AbsVal"),
    Case("Power", "power_param { power: 3 scale: 0.7 shift: 0.2 }", oracle=power),
    Case("Power", "power_param { power: 2 scale: -1.3 shift: 0.2 }"),
    Case("Power", "power_param { scale: -1 }"),
    Case("Power", "power_param { power: 0.7 shift: 0.3 }", oracle=power, makers=(positive,)),
    Case("Power", "power_param { power: -0.5 scale: 1.7 }", oracle=power, makers=(positive,)),
    Case("Power", "power_param { power: 0 }", oracle=lambda p, w, b: [np.ones(b[0].shape)]),
    Case("Power", "power_param { power: 3 scale: 0 shift: 1.5 }", oracle=power),
    Case("Exp"),
    Case("Exp", "exp_param { base: 2 scale: 0.4 shift: 0.7 }", oracle=exponential),
    Case("Exp", "exp_param { scale: 0.4 shift: -0.7 }", oracle=exponential),
    Case("Log", oracle=logarithm, makers=(positive,)),
    Case("Log", "log_param { base: 3 scale: 0.4 shift: 0.7 }", oracle=logarithm,
         makers=(positive,)),
    *(Case("Reduction", f"reduction_param {{ operation: {operation} axis: {axis} coeff: 1.3 }}",
           oracle=reduction) for operation in OPERATIONS for axis in (0, 1, -2)),
    Case("Reduction", oracle=reduction),
    *(Case("ArgMax", f"argmax_param {{ {options} }}", (shape,), oracle=argmax, makers=(ties,))
      for options in ("top_k: 1", "top_k: 3", "top_k: 3 out_max_val: true")
      for shape in ((2, 5, 7, 11), (3, 13))),
    *(Case("ArgMax", f"argmax_param {{ axis: {axis} {options} }}", oracle=argmax, makers=(ties,))
      for axis in (1, -1) for options in ("top_k: 1", "top_k: 3", "top_k: 3 out_max_val: true")),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("ArgMax", "argmax_param { top_k: 6 axis: 1 }", "1..5"),
        ("ArgMax", "argmax_param { top_k: 0 }", "1..385"),
        ("Reduction", "reduction_param { axis: 4 }", "out of range"),
        ("Exp", "exp_param { base: 0 }", "base is 0"),
        ("Exp", "exp_param { base: -2 }", "base is -2"),
        ("Exp", "exp_param { base: inf }", "base is inf"),
        ("Exp", "exp_param { base: 3 shift: 300 }", "beyond float32"),
        ("Exp", "exp_param { base: 3 scale: 3.3e38 }", "beyond float32"),
        ("Log", "log_param { base: 0 }", "base is 0"),
        ("Log", "log_param { base: 1 }", "base is 1"),
        ("Log", "log_param { base: nan }", "log_param.base is nan"),
    ],
)
def test_impossible_options(name: str, options: str, found: str) -> None:
    case = Case(name, options)
    with pytest.raises(ShapeError, match=found):
        case.kind.shape(case.message(), case.bottoms)
