"""Axes reduced to one value: sums, means, extremes, norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from int8calib.arrays import Array, Shape, namespace
from int8calib.errors import UnsupportedLayerError
from int8calib.ncnn.translate.layers.registry import engine_axis, ncnn_layer
from int8calib.ncnn.translate.options import Options

_Axes: TypeAlias = tuple[int, ...]


def _sum(x: Array, axes: _Axes) -> Any:
    return x.sum(axis=axes, keepdims=True)


_REDUCE: Sequence[Callable[[Array, _Axes], Any]] = (
    _sum,
    lambda x, axes: _sum(namespace(x).abs(x), axes),
    lambda x, axes: _sum(namespace(x).square(x), axes),
    lambda x, axes: _sum(x, axes) / np.float32(prod(x.shape[axis] for axis in axes)),
    lambda x, axes: x.max(axis=axes, keepdims=True),
    lambda x, axes: x.min(axis=axes, keepdims=True),
    lambda x, axes: x.prod(axis=axes, keepdims=True),
    lambda x, axes: _sum(namespace(x).abs(x), axes),
    lambda x, axes: namespace(x).sqrt(_sum(namespace(x).square(x), axes)),
    lambda x, axes: namespace(x).log(_sum(x, axes)),
    lambda x, axes: namespace(x).log(_sum(namespace(x).exp(x), axes)),
)
"""The operations, by number."""


def _axes(options: Options, ndim: int) -> _Axes:
    given = options.integers("axes")
    if options.integer("reduce_all") or not given:
        return tuple(range(1, ndim))
    return tuple(sorted({engine_axis(axis, ndim) for axis in given}))


def _reduction_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    if options.integer("operation") not in range(len(_REDUCE)):
        raise UnsupportedLayerError(f"operation {options.integer('operation')} is not supported")
    if options.integers("axes") and not options.integer("fixbug0"):
        raise UnsupportedLayerError("its axes are counted as ncnn of 2020 did; convert it anew")
    axes = _axes(options, len(bottoms[0]))
    if options.integer("keepdims"):
        return [tuple(1 if i in axes else size for i, size in enumerate(bottoms[0]))]
    left = [size for i, size in enumerate(bottoms[0]) if i not in axes]
    return [tuple(left) if len(left) > 1 else (left[0], 1)]


@ncnn_layer("Reduction", shape=_reduction_shape)
def reduction(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """`coeff` times one of `_REDUCE` over `axes`, or over all but the batch.

    Source: ncnn's reduction.cpp.
    """
    x = bottoms[0]
    with np.errstate(all="ignore"):
        top = _REDUCE[options.integer("operation")](x, _axes(options, x.ndim))
        top = namespace(x).asarray(top * np.float32(options.number("coeff")), np.float32)
    top = top.reshape(_reduction_shape(options, [x.shape])[0])
    return [namespace(x).ascontiguousarray(top)]
