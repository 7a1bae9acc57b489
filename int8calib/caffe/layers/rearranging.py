"""Layers that move values to other places and compute nothing: the tops are copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import axis_index, indices_of, need_count, need_ndim
from int8calib.errors import ShapeError


def _permute_order(params: LayerParameter, ndim: int) -> list[int]:
    """The axes named first, then the others in their order."""
    order = [int(axis) for axis in params.permute_param.order]
    if len(set(order)) != len(order) or any(axis >= ndim for axis in order):
        raise ShapeError(f"order {order} is no choice of distinct axes out of {ndim}")
    return order + [axis for axis in range(ndim) if axis not in order]


def _permute_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return [tuple(bottoms[0][axis] for axis in _permute_order(params, len(bottoms[0])))]


@layer("Permute", shape=_permute_shape)
def permute(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Axes in the order named. Source: the SSD fork's PermuteLayer."""
    order = _permute_order(params, bottoms[0].ndim)
    return [bottoms[0].transpose(order).copy()]


def _crop_slices(params: LayerParameter, bottoms: Sequence[Shape]) -> tuple[slice, ...]:
    """What is kept of each axis of the first bottom."""
    need_count(bottoms, 2)
    param, (shape, size) = params.crop_param, bottoms
    start = axis_index(param.axis, len(shape))
    offsets = list(param.offset) or [0]
    if len(offsets) == 1:
        offsets *= len(shape) - start
    if len(size) != len(shape) or len(offsets) != len(shape) - start:
        raise ShapeError(
            f"bottoms {shape} and {size} with {len(offsets)} offsets; "
            f"expected as many axes, and one offset or {len(shape) - start}"
        )
    slices = [slice(None)] * start
    for axis, offset in enumerate(offsets, start):
        if offset + size[axis] > shape[axis]:
            raise ShapeError(
                f"axis {axis} of {shape} is too short for {size[axis]} entries from {offset} on"
            )
        slices.append(slice(offset, offset + size[axis]))
    return tuple(slices)


def _crop_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    kept = len(bottoms[0]) - sum(s != slice(None) for s in _crop_slices(params, bottoms))
    return [(*bottoms[0][:kept], *bottoms[1][kept:])]


@layer("Crop", shape=_crop_shape)
def crop(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The first bottom cut to the second's size from `axis` on, at `offset` (one, or one an axis).

    Source: Caffe's CropLayer.
    """
    slices = _crop_slices(params, [bottom.shape for bottom in bottoms])
    return [bottoms[0][slices].copy()]


def _crop_center_slices(params: LayerParameter, shape: Shape) -> tuple[slice, ...]:
    """What is kept of each axis."""
    sizes = list(params.crop_center_param.crop_size)
    if len(sizes) != len(shape):
        raise ShapeError(
            f"{len(sizes)} values of crop_size for a bottom {shape}; expected one each"
        )
    if any(2 * size >= length for size, length in zip(sizes, shape, strict=True)):
        raise ShapeError(f"crop_size {sizes} at both ends leaves nothing of {shape}")
    return tuple(slice(size, length - size) for size, length in zip(sizes, shape, strict=True))


def _crop_center_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_count(bottoms, 1)
    slices = _crop_center_slices(params, bottoms[0])
    return [tuple(kept.stop - kept.start for kept in slices)]


@layer("CropCenter", shape=_crop_center_shape)
def crop_center(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The bottom without `crop_size[i]` entries at both ends of each axis i.

    Source: CropCenterLayer of the forks for super-resolution.
    """
    return [bottoms[0][_crop_center_slices(params, bottoms[0].shape)].copy()]


def _tile_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param, shape = params.tile_param, bottoms[0]
    axis = axis_index(param.axis, len(shape))
    if param.tiles < 1:
        raise ShapeError(f"tiles is {param.tiles}; it must be at least 1")
    return [(*shape[:axis], shape[axis] * param.tiles, *shape[axis + 1 :])]


@layer("Tile", shape=_tile_shape)
def tile(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The bottom `tiles` times, one after another along `axis`. Source: Caffe's TileLayer."""
    axis = axis_index(params.tile_param.axis, bottoms[0].ndim)
    copies = [bottoms[0]] * params.tile_param.tiles
    return [namespace(bottoms[0]).concatenate(copies, axis=axis)]


def _shuffle_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_ndim(bottoms, 4)
    group = params.shuffle_channel_param.group
    if group < 1 or bottoms[0][1] % group:
        raise ShapeError(f"{bottoms[0][1]} channels do not divide into {group} groups")
    return [bottoms[0]]


def _shuffled(x: Array, group: int) -> Array:
    """A view (N, C / group, group, H, W) of images, channels in their new order."""
    n, channels, height, width = x.shape
    grouped: Array = x.reshape(n, group, channels // group, height, width)
    shuffled: Array = grouped.transpose(0, 2, 1, 3, 4)
    return shuffled


def _plan_shuffle(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    group = params.shuffle_channel_param.group

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        view = _shuffled(bottoms[0], group)
        np.copyto(tops[0].reshape(view.shape), view)

    return run


@layer("ShuffleChannel", shape=_shuffle_shape, plan=_plan_shuffle)
def shuffle_channel(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Channels of `group` groups interleaved: channel j * group + i is channel i * C / group + j.

    Source: the ShuffleNet paper (arXiv 1707.01083), ShuffleChannelLayer of its forks.
    """
    view = _shuffled(bottoms[0], params.shuffle_channel_param.group)
    return [view.copy().reshape(bottoms[0].shape)]


def _reorg_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_ndim(bottoms, 4)
    (n, channels, height, width), stride = bottoms[0], params.reorg_param.stride
    reverse = params.reorg_param.reverse
    if stride < 1 or channels % stride**2 or (not reverse and (height % stride or width % stride)):
        raise ShapeError(
            f"bottom {bottoms[0]} with stride {stride}; channels must be a multiple of "
            "stride x stride, height and width of stride"
        )
    if reverse:
        return [(n, channels // stride**2, height * stride, width * stride)]
    return [(n, channels * stride**2, height // stride, width // stride)]


@layer("Reorg", shape=_reorg_shape)
def reorg(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Blocks of stride x stride pixels moved into channels, as YOLO v2 does; `reverse` moves back.

    With s = stride, D = C / s^2 and a blob (N, C, H, W): `reverse` puts channel k at (j, i) into
    channel k mod D at (j * s + o div s, i * s + o mod s), o = k div D. Forward reads the same
    places of the bottom's memory taken as (N, D, H * s, W * s) and writes (N, C, H, W) in order,
    which is not the plain space-to-depth. Source: darknet's reorg_layer, ReorgLayer of the forks.
    """
    x, s = bottoms[0], params.reorg_param.stride
    n, channels, height, width = x.shape
    depth = channels // s**2
    if params.reorg_param.reverse:
        moved = x.reshape(n, s, s, depth, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(n, depth, height, s, width, s).transpose(0, 3, 5, 1, 2, 4)
    return [moved.copy().reshape(_reorg_shape(params, [x.shape])[0])]


def _batch_reindex_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_count(bottoms, 2)
    need_ndim(bottoms[1:], 1)
    return [(bottoms[1][0], *bottoms[0][1:])]


@layer("BatchReindex", shape=_batch_reindex_shape)
def batch_reindex(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The entries of axis 0 that the second bottom lists. Source: Caffe's BatchReindexLayer."""
    return [bottoms[0][indices_of(bottoms[1], len(bottoms[0]), "the indices of the batch")]]
