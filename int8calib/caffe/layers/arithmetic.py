"""Arithmetic without weights: powers, exponentials and logarithms, value by value; reductions."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log, prod
from typing import Any

import numpy as np

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.elementwise import elementwise
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import axis_index
from int8calib.errors import ShapeError

_ASUM, _SUMSQ, _MEAN = (
    caffe_pb2.ReductionParameter.ASUM,
    caffe_pb2.ReductionParameter.SUMSQ,
    caffe_pb2.ReductionParameter.MEAN,
)


_LARGEST_EXPONENT = 700.0
"""Of e, in Python's floats; far beyond float32."""


@elementwise("AbsVal")
def absval(params: LayerParameter, x: Array, out: Array) -> None:
    """|x|. Source: Caffe's AbsValLayer."""
    namespace(x).abs(x, out=out)


@elementwise("Power")
def power(params: LayerParameter, x: Array, out: Array) -> None:
    """(shift + scale * x)^power; 1 for power 0. Source: Caffe's PowerLayer."""
    xp, param = namespace(x), params.power_param
    if param.power == 0 or param.scale == 0:
        out.fill(1 if param.power == 0 else np.float32(param.shift) ** np.float32(param.power))
        return
    xp.multiply(x, np.float32(param.scale), out=out)
    if param.shift:
        xp.add(out, np.float32(param.shift), out=out)
    if param.power == 2:
        xp.square(out, out=out)
    elif param.power != 1:
        xp.power(out, np.float32(param.power), out=out)


def _log_of_base(param: Any) -> float:
    """The natural logarithm of `base`, of which -1 means e; raises `ShapeError`."""
    if param.base != -1 and not 0 < param.base < inf:
        raise ShapeError(f"base is {param.base:g}; expected a number above 0, or -1 for e")
    return 1.0 if param.base == -1 else log(param.base)


def _exp_factors(params: LayerParameter) -> tuple[float, float]:
    """What x is multiplied with before the exponential, and its result afterwards."""
    param = params.exp_param
    rate = _log_of_base(param)
    factors = rate * param.scale, exp(min(rate * param.shift, _LARGEST_EXPONENT))
    if max(map(abs, factors)) > float(np.finfo(np.float32).max):
        raise ShapeError(
            f"base {param.base:g}, scale {param.scale:g} and shift {param.shift:g} give factors "
            "beyond float32"
        )
    return factors


@elementwise("Exp", check=_exp_factors)
def exponential(params: LayerParameter, x: Array, out: Array) -> None:
    """base^(shift + scale * x), where base -1 means e. Source: Caffe's ExpLayer."""
    xp = namespace(x)
    rate, factor = _exp_factors(params)
    xp.multiply(x, np.float32(rate), out=out)
    xp.exp(out, out=out)
    if factor != 1:
        xp.multiply(out, np.float32(factor), out=out)


def _log_factor(params: LayerParameter) -> float:
    """What a natural logarithm is multiplied with."""
    rate = _log_of_base(params.log_param)
    if rate == 0:
        raise ShapeError("base is 1, to which there are no logarithms")
    return 1 / rate


@elementwise("Log", check=_log_factor)
def logarithm(params: LayerParameter, x: Array, out: Array) -> None:
    """Logarithm to `base` of shift + scale * x, base -1 meaning e. Source: Caffe's LogLayer."""
    xp, param = namespace(x), params.log_param
    xp.multiply(x, np.float32(param.scale), out=out)
    xp.add(out, np.float32(param.shift), out=out)
    xp.log(out, out=out)
    if param.base != -1:
        xp.multiply(out, np.float32(_log_factor(params)), out=out)


def _reduction_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    axis = params.reduction_param.axis
    return [bottoms[0][: axis_index(axis, len(bottoms[0]))]]


@layer("Reduction", shape=_reduction_shape)
def reduction(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """`coeff` times the sum, the sum of |x| or of x^2, or the mean, over `axis` and all after it.

    Source: Caffe's ReductionLayer. The axes reduced are gone; with axis 0 a scalar is left.
    """
    param, shape = params.reduction_param, bottoms[0].shape
    axis = axis_index(param.axis, len(shape))
    x = bottoms[0].reshape(*shape[:axis], -1)
    if param.operation == _ASUM:
        x = namespace(x).abs(x)
    elif param.operation == _SUMSQ:
        x = namespace(x).square(x)
    coeff = np.float32(param.coeff)
    if param.operation == _MEAN:
        coeff /= np.float32(prod(shape[axis:]))
    return [namespace(x).asarray(x.sum(axis=-1) * coeff)]


def _argmax_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param, shape = params.argmax_param, bottoms[0]
    if not param.HasField("axis"):
        top = [1] * max(3, len(shape))
        top[:3] = shape[0], 2 if param.out_max_val else 1, param.top_k
        count = prod(shape[1:])
    else:
        axis = axis_index(param.axis, len(shape))
        top = [*shape[:axis], param.top_k, *shape[axis + 1 :]]
        count = shape[axis]
    if not 1 <= param.top_k <= count:
        raise ShapeError(f"top_k {param.top_k} is not within 1..{count}, the values to choose from")
    return [tuple(top)]


def _largest(x: Array, count: int) -> tuple[Array, Array]:
    """Indices (as float32) and values of the `count` largest along the last axis, best first.

    Of equal values the later comes first, as Caffe sorts pairs of value and index.
    """
    xp = namespace(x)
    order = xp.argsort(-x[..., ::-1], axis=-1, kind="stable")[..., :count]
    index = x.shape[-1] - 1 - order
    return index.astype(np.float32), xp.take_along_axis(x, index, axis=-1)


@layer("ArgMax", shape=_argmax_shape)
def argmax(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The indices of the `top_k` largest values along `axis`, or of each whole image.

    With `out_max_val` the values themselves instead (with an axis) or beside the indices, as a
    second channel (without). Source: Caffe's ArgMaxLayer.
    """
    param, x, xp = params.argmax_param, bottoms[0], namespace(bottoms[0])
    if param.HasField("axis"):
        axis = axis_index(param.axis, x.ndim)
        index, value = _largest(xp.moveaxis(x, axis, -1), param.top_k)
        chosen = value if param.out_max_val else index
        return [xp.ascontiguousarray(xp.moveaxis(chosen, -1, axis))]
    index, value = _largest(x.reshape(x.shape[0], -1), param.top_k)
    parts = [index, value] if param.out_max_val else [index]
    return [xp.stack(parts, axis=1).reshape(_argmax_shape(params, [x.shape])[0])]
