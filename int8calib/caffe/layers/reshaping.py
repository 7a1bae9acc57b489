"""Layers that give the same memory another shape and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import axis_index
from int8calib.errors import ShapeError


def _flatten_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param, shape = params.flatten_param, bottoms[0]
    start = axis_index(param.axis, len(shape))
    stop = axis_index(param.end_axis, len(shape)) + 1
    if stop <= start:
        raise ShapeError(f"axis {param.axis} lies behind end_axis {param.end_axis}")
    return [(*shape[:start], prod(shape[start:stop]), *shape[stop:])]


@layer("Flatten", shape=_flatten_shape, view=True)
def flatten(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The axes from `axis` to `end_axis` made one. Source: Caffe's FlattenLayer."""
    return [bottoms[0].reshape(_flatten_shape(params, [bottoms[0].shape])[0])]


def _reshape_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param, shape = params.reshape_param, bottoms[0]
    start = param.axis if param.axis >= 0 else len(shape) + param.axis + 1
    stop = len(shape) if param.num_axes == -1 else start + param.num_axes
    if not 0 <= start <= stop <= len(shape):
        raise ShapeError(f"axis {param.axis} and num_axes {param.num_axes} pass {shape}")
    middle = []
    for i, dim in enumerate(param.shape.dim):
        if dim == 0 and start + i >= len(shape):
            raise ShapeError(f"dim {i} is 0 (copied), but the bottom {shape} has no such axis")
        middle.append(shape[start + i] if dim == 0 else int(dim))
    top = (*shape[:start], *middle, *shape[stop:])
    known = prod(dim for dim in top if dim != -1)
    if -1 in middle and known and prod(shape) % known == 0:
        top = tuple(prod(shape) // known if dim == -1 else dim for dim in top)
    if prod(top) != prod(shape) or min(top, default=1) < 0:
        raise ShapeError(f"{prod(shape)} values of {shape} do not fit into {top}")
    return [top]


@layer("Reshape", shape=_reshape_shape, view=True)
def reshape(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The same values in another shape: 0 copies an axis, -1 takes what is left.

    Source: Caffe's ReshapeLayer; `axis` and `num_axes` say which axes are replaced. The first
    axis of a fixed size is taken as the batch where it was one, see the engine.
    """
    return [bottoms[0].reshape(_reshape_shape(params, [bottoms[0].shape])[0])]
