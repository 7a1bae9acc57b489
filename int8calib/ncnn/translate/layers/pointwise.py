"""Functions of single values, and of pairs of them with ncnn's broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from int8calib.arrays import Array, Shape, namespace
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.layers.registry import ncnn_layer, same_shape
from int8calib.ncnn.translate.options import Options

_BINARY = (
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "power"),
    *("subtract", "divide", "power", "arctan2", "arctan2"),
)
"""The operations of BinaryOp, by number; those of `_REVERSED` with the operands exchanged."""
_REVERSED = (7, 8, 9, 11)

_UNARY = (
    *("abs", "negative", "floor", "ceil", "square", "sqrt", "rsqrt", "exp", "log", "sin", "cos"),
    *("tan", "arcsin", "arccos", "arctan", "reciprocal", "tanh", "log10", "rint", "trunc"),
)
"""The operations of UnaryOp, by number."""


def _operation(options: Options, known: Sequence[object]) -> int:
    number = options.integer("op_type")
    if not 0 <= number < len(known):
        raise UnsupportedLayerError(f"operation {number}; 0 to {len(known) - 1} are supported")
    return number


def _expanded(shape: Shape, ndim: int, outermost: int) -> Shape:
    """A shape with as many axes as the other operand, which has `outermost` on axis 1.

    One axis is that of the channels if it is as long, else the innermost; two and more are the
    outermost ones. Source: ncnn's binaryop.cpp.
    """
    missing = ndim - len(shape)
    if missing <= 0:
        return shape
    if len(shape) == 2 and shape[1] != outermost:
        return (shape[0], *(1,) * missing, shape[1])
    return (*shape, *(1,) * missing)


def _operands(bottoms: Sequence[Shape]) -> list[Shape]:
    ndim = max(map(len, bottoms))
    outermost = next(shape[1] for shape in bottoms if len(shape) == ndim)
    return [_expanded(shape, ndim, outermost) for shape in bottoms]


def _binary_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    _operation(options, _BINARY)
    if options.integer("with_scalar"):
        return [bottoms[0]]
    if len(bottoms) != 2 or min(map(len, bottoms)) < 2:
        raise ShapeError(f"bottoms of shapes {list(bottoms)}; expected two, or a scalar")
    try:
        return [np.broadcast_shapes(*_operands(bottoms))]
    except ValueError:
        raise ShapeError(f"bottoms {bottoms[0]} and {bottoms[1]} do not broadcast") from None


@ncnn_layer("BinaryOp", shape=_binary_shape)
def binary_op(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """One of `_BINARY` of two blobs, or of a blob and a scalar. Source: ncnn's binaryop.cpp."""
    number = _operation(options, _BINARY)
    combine = getattr(namespace(bottoms[0]), _BINARY[number])
    if options.integer("with_scalar"):
        pair = [bottoms[0], np.float32(options.number("b"))]
    else:
        shapes = _operands([bottom.shape for bottom in bottoms])
        pair = [bottom.reshape(shape) for bottom, shape in zip(bottoms, shapes, strict=True)]
    return [_quietly(combine, *(reversed(pair) if number in _REVERSED else pair))]


def _quietly(function: Callable[..., Array], *operands: Any) -> Array:
    """The function's float32 values; infinities and NaN are results as in C."""
    with np.errstate(all="ignore"):
        top = function(*operands)
        values: Array = namespace(top).ascontiguousarray(top, np.float32)
        return values


def _unary_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    _operation(options, _UNARY)
    return [bottoms[0]]


@ncnn_layer("UnaryOp", shape=_unary_shape)
def unary_op(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """One of `_UNARY`; halves are rounded to even. Source: ncnn's unaryop.cpp."""
    name, xp = _UNARY[_operation(options, _UNARY)], namespace(bottoms[0])
    if name == "rsqrt":
        return [_quietly(lambda x: np.float32(1) / xp.sqrt(x), bottoms[0])]
    return [_quietly(getattr(xp, name), bottoms[0])]


def sigmoid(options: Options, x: Array) -> Array:
    """1 / (1 + exp(-x)), far below 0 too, where Caffe's is 0. Source: ncnn's sigmoid.cpp."""
    top: Array = 1 / (1 + namespace(x).exp(-x))
    return top


def swish(options: Options, x: Array) -> Array:
    """x / (1 + exp(-x)). Source: ncnn's swish.cpp."""
    top: Array = x / (1 + namespace(x).exp(-x))
    return top


def hard_sigmoid(options: Options, x: Array) -> Array:
    """alpha * x + beta, kept within 0 and 1. Source: ncnn's hardsigmoid.cpp."""
    alpha, beta = (np.float32(options.number(name)) for name in ("alpha", "beta"))
    top: Array = namespace(x).clip(x * alpha + beta, np.float32(0), np.float32(1))
    return top


def hard_swish(options: Options, x: Array) -> Array:
    """x times its hard sigmoid. Source: ncnn's hardswish.cpp."""
    return x * hard_sigmoid(options, x)


def erfc(x: Array) -> Array:
    """The complementary error function, float64, within 1.2e-7 of its value.

    Source: Numerical Recipes, section 6.2.2 (a Chebyshev fit).
    """
    coefficients = (
        0.17087277,
        -0.82215223,
        1.48851587,
        -1.13520398,
        0.27886807,
        -0.18628806,
        0.09678418,
        0.37409196,
        1.00002368,
        -1.26551223,
    )
    xp = namespace(x)
    size = xp.abs(x, dtype=np.float64)
    t = 1 / (1 + size / 2)
    exponent = xp.zeros_like(t)
    for coefficient in coefficients:
        exponent = exponent * t + coefficient
    tail = t * xp.exp(exponent - size * size)
    values: Array = xp.where(x >= 0, tail, 2 - tail)
    return values


def gelu(options: Options, x: Array) -> Array:
    """x times the normal distribution at x, or its approximation by tanh. Source: gelu.cpp."""
    if options.integer("fast_gelu"):
        inner = np.float32(0.79788452) * (x + np.float32(0.044715) * x * x * x)
        top: Array = np.float32(0.5) * x * (1 + namespace(x).tanh(inner))
        return top
    exact: Array = 0.5 * x * erfc(-np.sqrt(0.5) * x)
    return exact


def softplus(options: Options, x: Array) -> Array:
    """log(1 + exp(x)). Source: ncnn's softplus.cpp."""
    top: Array = namespace(x).logaddexp(x, np.float32(0))
    return top


def celu(options: Options, x: Array) -> Array:
    """x above 0, else alpha * (exp(x / alpha) - 1). Source: ncnn's celu.cpp."""
    alpha = np.float32(options.number("alpha"))
    xp = namespace(x)
    top: Array = xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0) / alpha))
    return top


def erf(options: Options, x: Array) -> Array:
    """The error function. Source: ncnn's erf.cpp."""
    return 1 - erfc(x)


FUNCTIONS: Mapping[str, Callable[[Options, Array], Array]] = {
    "Sigmoid": sigmoid,
    "Swish": swish,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "GELU": gelu,
    "Softplus": softplus,
    "CELU": celu,
    "Erf": erf,
}
"""Types that map each value by itself."""


def _register(name: str, function: Callable[[Options, Array], Array]) -> None:
    @ncnn_layer(name, shape=same_shape)
    def run(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
        return [_quietly(lambda x: function(options, x), bottoms[0])]


for _name, _function in FUNCTIONS.items():
    _register(_name, _function)
