"""What several layer families share: checks of bottoms, axes, and indices that are values."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.errors import ModelError, ShapeError


def same_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    """One top, shaped as the first bottom."""
    return [bottoms[0]]


def axis_index(axis: int, ndim: int) -> int:
    """Count an axis from the front, as Caffe's CanonicalAxisIndex.

    Parameters
    ----------
    axis
        Its number; negative ones count from behind.
    ndim
        How many axes there are.

    Returns
    -------
    int
        0 to `ndim` - 1.

    Raises
    ------
    ShapeError
        Where there is no such axis.
    """
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


def indices_of(values: Array, count: int, what: str) -> NDArray[np.int64]:
    """Take the values of a blob as indices, as Caffe does by cutting them to whole numbers.

    Parameters
    ----------
    values
        float32, any shape.
    count
        How many things they point to.
    what
        What they are, for the message, such as "the indices".

    Returns
    -------
    int64 array
        Of the shape of `values`, where they are.

    Raises
    ------
    ModelError
        For a value that is NaN or outside 0 to `count` - 1.
    """
    # NaN fails the comparison too.
    if not bool(((values > -1) & (values < count)).all()):
        low, high = float(values.min()), float(values.max())
        raise ModelError(f"{what} are {low:g} to {high:g}; expected 0 to {count - 1}")
    return values.astype(np.int64)
