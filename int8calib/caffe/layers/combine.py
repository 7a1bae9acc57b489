"""Layers that join several bottoms or hand one on to several tops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import axis_index
from int8calib.errors import ShapeError

_PROD, _SUM, _MAX = (
    caffe_pb2.EltwiseParameter.PROD,
    caffe_pb2.EltwiseParameter.SUM,
    caffe_pb2.EltwiseParameter.MAX,
)


def _eltwise_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.eltwise_param
    if any(shape != bottoms[0] for shape in bottoms):
        raise ShapeError(f"bottoms have different shapes: {', '.join(map(str, bottoms))}")
    if len(param.coeff) not in (0, len(bottoms)):
        raise ShapeError(f"{len(param.coeff)} coefficients for {len(bottoms)} bottoms")
    if param.coeff and param.operation == _PROD:
        raise ShapeError("coefficients have a meaning for SUM only")
    return [bottoms[0]]


def _plan_eltwise(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    param = params.eltwise_param
    coeff = [np.float32(c) for c in param.coeff]
    if param.operation == _SUM and any(c != 1 for c in coeff):
        return _plan_weighted_sum(coeff)
    combine = {_PROD: np.multiply, _SUM: np.add, _MAX: np.maximum}[param.operation]

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        if len(bottoms) == 1:
            np.copyto(tops[0], bottoms[0])
            return
        combine(bottoms[0], bottoms[1], out=tops[0])
        for bottom in bottoms[2:]:
            combine(tops[0], bottom, out=tops[0])

    return run


def _plan_weighted_sum(coeff: Sequence[np.float32]) -> FastPath:
    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        np.multiply(bottoms[0], coeff[0], out=tops[0])
        for bottom, factor in zip(bottoms[1:], coeff[1:], strict=True):
            np.add(tops[0], bottom * factor, out=tops[0])

    return run


@layer("Eltwise", shape=_eltwise_shape, plan=_plan_eltwise)
def eltwise(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """PROD, SUM (each bottom times its `coeff`) or MAX, value by value.

    Source: Caffe's EltwiseLayer.
    """
    param, xp = params.eltwise_param, namespace(bottoms[0])
    if param.operation == _PROD:
        return [xp.prod(xp.stack(bottoms), axis=0)]
    if param.operation == _MAX:
        return [xp.max(xp.stack(bottoms), axis=0)]
    coeff = xp.asarray(list(param.coeff) or [1] * len(bottoms), np.float32)
    return [xp.tensordot(coeff, xp.stack(bottoms), axes=1)]


def _add_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    try:
        return [np.broadcast_shapes(*bottoms)]
    except ValueError:
        shapes = ", ".join(map(str, bottoms))
        raise ShapeError(f"bottoms of shapes {shapes} do not broadcast") from None


def _plan_add(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        np.copyto(tops[0], bottoms[0])
        for bottom in bottoms[1:]:
            np.add(tops[0], bottom, out=tops[0])

    return run


@layer("Add", shape=_add_shape, plan=_plan_add)
def add(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The sum of the bottoms, axes of size 1 and missing first axes repeated as in numpy.

    Source: AddLayer of the Synopsys fork.
    """
    shape = np.broadcast_shapes(*(bottom.shape for bottom in bottoms))
    top = namespace(bottoms[0]).zeros(shape, np.float32)
    for bottom in bottoms:
        top += bottom
    return [top]


def concat_axis(params: LayerParameter, ndim: int) -> int:
    """Read the axis that a Concat joins along.

    Parameters
    ----------
    params
        The Concat layer; its older `concat_dim` counts if that is given.
    ndim
        How many axes its bottoms have.

    Returns
    -------
    int
        The axis, counted from the front.
    """
    param = params.concat_param
    return _one_axis(param, "concat_dim", ndim)


def _one_axis(param: Any, older: str, ndim: int) -> int:
    """`axis`, or the field that it had before; raises `ShapeError` where they differ."""
    if not param.HasField(older):
        return axis_index(param.axis, ndim)
    old = axis_index(getattr(param, older), ndim)
    if param.HasField("axis") and axis_index(param.axis, ndim) != old:
        raise ShapeError(f"axis is {param.axis} and {older} is {old}; give one of them")
    return old


def _concat_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    first = bottoms[0]
    axis = concat_axis(params, len(first))
    for shape in bottoms[1:]:
        if len(shape) != len(first) or any(
            a != b for i, (a, b) in enumerate(zip(first, shape, strict=True)) if i != axis
        ):
            raise ShapeError(f"bottoms {first} and {shape} differ beside axis {axis}")
    return [(*first[:axis], sum(shape[axis] for shape in bottoms), *first[axis + 1 :])]


def _plan_concat(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    axis = concat_axis(params, len(bottoms[0]))

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        np.concatenate(bottoms, axis=axis, out=tops[0])

    return run


def _joins(params: LayerParameter, bottoms: Sequence[Shape]) -> bool:
    return prod(bottoms[0][: concat_axis(params, len(bottoms[0]))]) == 1


@layer("Concat", shape=_concat_shape, plan=_plan_concat, joins=_joins)
def concat(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The bottoms one after another along `axis`. Source: Caffe's ConcatLayer."""
    axis = concat_axis(params, bottoms[0].ndim)
    return [namespace(bottoms[0]).concatenate(bottoms, axis=axis)]


def _slice_points(params: LayerParameter, shape: Shape) -> tuple[int, list[int]]:
    """The axis, and where it is cut, both ends included."""
    param = params.slice_param
    axis = _one_axis(param, "slice_dim", len(shape))
    tops, length = len(params.top), shape[axis]
    points = [0, *param.slice_point, length]
    if not param.slice_point:
        if length % tops:
            raise ShapeError(f"{length} entries of axis {axis} do not divide among {tops} tops")
        points = [length // tops * i for i in range(tops + 1)]
    if len(points) != tops + 1 or any(a >= b for a, b in pairwise(points)):
        raise ShapeError(
            f"slice points {points[1:-1]} do not cut {length} entries into {tops} tops"
        )
    return axis, points


def _slice_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    axis, points = _slice_points(params, bottoms[0])
    return [
        (*bottoms[0][:axis], stop - start, *bottoms[0][axis + 1 :])
        for start, stop in pairwise(points)
    ]


def _plan_slice(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    axis, points = _slice_points(params, bottoms[0])
    cuts = points[1:-1]

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for part, top in zip(np.split(bottoms[0], cuts, axis=axis), tops, strict=True):
            np.copyto(top, part)

    return run


@layer("Slice", shape=_slice_shape, plan=_plan_slice)
def slice_(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """One bottom cut along `axis` at the slice points, or evenly. Source: Caffe's SliceLayer."""
    axis, points = _slice_points(params, bottoms[0].shape)
    parts = namespace(bottoms[0]).split(bottoms[0], points[1:-1], axis=axis)
    return [part.copy() for part in parts]


def _split_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return [bottoms[0]] * len(params.top)


@layer("Split", shape=_split_shape, view=True)
def split(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The same values under several names. Source: Caffe's SplitLayer."""
    return [bottoms[0]] * len(params.top)


def _no_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return []


@layer("Silence", shape=_no_shape)
def silence(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Nothing: it only reads its bottoms. Source: Caffe's SilenceLayer."""
    return []
