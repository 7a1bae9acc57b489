"""Factors and offsets: Scale, Bias and Axpy, from weights or from another bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import axis_index, need_count
from int8calib.errors import ShapeError


def along(values: Array, axis: int, ndim: int) -> Array:
    """Append axes of size 1 to values, so that they broadcast from an axis on.

    Parameters
    ----------
    values
        float32, any shape.
    axis
        The axis of the larger array that the first axis of `values` belongs to.
    ndim
        How many axes the larger array has.

    Returns
    -------
    float32 array
        The same values, with `ndim` - `axis` axes.
    """
    return values.reshape(*values.shape, *(1,) * (ndim - axis - values.ndim))


def _start(param: Any, ndim: int) -> int:
    """The axis from which a ScaleParameter or BiasParameter broadcasts."""
    return axis_index(param.axis, ndim) if ndim else 0


def _learned_shape(param: Any, bottom: Shape) -> Shape:
    """The shape of a learned blob over `num_axes` axes from `axis` (-1: all of them)."""
    start = _start(param, len(bottom))
    stop = len(bottom) if param.num_axes == -1 else start + param.num_axes
    if stop > len(bottom):
        raise ShapeError(
            f"num_axes {param.num_axes} from axis {param.axis} passes the {len(bottom)} axes"
        )
    return bottom[start:stop]


def _same_as_first(param: Any, bottoms: Sequence[Shape]) -> list[Shape]:
    """The first bottom's shape, of which a second one must match the axes from `axis` on."""
    first = bottoms[0]
    if len(bottoms) > 1:
        need_count(bottoms, 2)
        start = _start(param, len(first))
        if first[start : start + len(bottoms[1])] != bottoms[1]:
            raise ShapeError(f"bottom {bottoms[1]} does not match {first} from axis {start} on")
    return [first]


def _scale_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return _same_as_first(params.scale_param, bottoms)


def _scale_weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.scale_param
    if len(bottoms) > 1:
        return [bottoms[1]] if param.bias_term else []
    shape = _learned_shape(param, bottoms[0])
    return [shape, shape] if param.bias_term else [shape]


def _plan_scale(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    ndim = len(bottoms[0])
    axis = _start(params.scale_param, ndim)
    learned = [along(blob, axis, ndim) for blob in weights]

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        factor, *bias = (*(along(image, axis, ndim) for image in images[1:]), *learned)
        np.multiply(images[0], factor, out=tops[0])
        if bias:
            np.add(tops[0], bias[0], out=tops[0])

    return run


@layer("Scale", shape=_scale_shape, weights=_scale_weights, plan=_plan_scale, inplace=True)
def scale(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """x * factor (+ bias), broadcast from `axis` on; the factor is a blob or the second bottom.

    Source: Caffe's ScaleLayer.
    """
    images, *factors = bottoms
    axis = _start(params.scale_param, images.ndim)
    factor, *bias = (*factors, *weights)
    top = images * along(factor, axis, images.ndim)
    if bias:
        top += along(bias[0], axis, images.ndim)
    return [top]


def _bias_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return _same_as_first(params.bias_param, bottoms)


def _bias_weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return [] if len(bottoms) > 1 else [_learned_shape(params.bias_param, bottoms[0])]


def _plan_bias(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    ndim = len(bottoms[0])
    axis = _start(params.bias_param, ndim)

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        offset = bottoms[1] if len(bottoms) > 1 else weights[0]
        np.add(bottoms[0], along(offset, axis, ndim), out=tops[0])

    return run


@layer("Bias", shape=_bias_shape, weights=_bias_weights, plan=_plan_bias, inplace=True)
def bias(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """x + offset, broadcast from `axis` on; the offset is a blob or the second bottom.

    Source: Caffe's BiasLayer.
    """
    images, *offsets = (*bottoms, *weights)
    axis = _start(params.bias_param, images.ndim)
    return [images + along(offsets[0], axis, images.ndim)]


def _axpy_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_count(bottoms, 3)
    factor, x, y = bottoms
    if x != y or factor[:2] != x[:2] or any(dim != 1 for dim in factor[2:]):
        raise ShapeError(
            f"bottoms {factor}, {x} and {y} do not fit; "
            "expected (N, C, 1, 1) and twice (N, C, H, W)"
        )
    return [x]


def _plan_axpy(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    shape = (*bottoms[0][:2], *(1,) * (len(bottoms[1]) - 2))

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        np.multiply(bottoms[1], bottoms[0].reshape(shape), out=tops[0])
        np.add(tops[0], bottoms[2], out=tops[0])

    return run


@layer("Axpy", shape=_axpy_shape, plan=_plan_axpy)
def axpy(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """a * x + y, with one a per channel of each image. Source: AxpyLayer of the SENet fork."""
    a, x, y = bottoms
    return [a.reshape(*a.shape[:2], *(1,) * (x.ndim - 2)) * x + y]
