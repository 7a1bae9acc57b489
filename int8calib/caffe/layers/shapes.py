"""Shape arithmetic that several layer families share; takes shapes and returns shapes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from caffe_proto import LayerParameter
from int8calib.arrays import Shape
from int8calib.errors import ShapeError


def same_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    """One top, shaped as the first bottom."""
    return [bottoms[0]]


def axis_index(axis: int, ndim: int) -> int:
    """`axis` counted from the front, as Caffe's CanonicalAxisIndex; raises `ShapeError`."""
    if not -ndim <= axis < ndim:
        raise ShapeError(f"axis {axis} is out of range for a {ndim}-d bottom")
    return axis % ndim


def need_ndim(bottoms: Sequence[Shape], ndim: int) -> None:
    """Raise `ShapeError` unless the first bottom has `ndim` axes."""
    if len(bottoms[0]) != ndim:
        raise ShapeError(f"bottom has shape {bottoms[0]}; expected {ndim} axes")


def need_count(bottoms: Sequence[Shape], count: int) -> None:
    """Raise `ShapeError` unless there are `count` bottoms."""
    if len(bottoms) != count:
        raise ShapeError(f"has {len(bottoms)} bottoms; expected {count}")


def flat_from(shape: Shape, axis: int) -> int:
    """The number of values in one slice from `axis` on."""
    return prod(shape[axis:])
