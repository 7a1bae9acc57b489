"""Pooling of regions: images (N, C, H, W) and boxes (R, 5) to one small image for each box.

A box is (image index, x1, y1, x2, y2) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import indices_of, need_count, need_ndim
from int8calib.errors import ModelError, ShapeError

MAX_POOLED = 1 << 12
"""Bins along an axis."""
MAX_COORDINATE = np.float32(1e9)
"""The farthest a box may reach; farther ones are what a network gives that has gone wrong."""


def _need_regions(bottoms: Sequence[Shape], pooled: Sequence[int]) -> None:
    need_count(bottoms, 2)
    need_ndim(bottoms, 4)
    boxes = bottoms[1]
    if len(boxes) < 2 or boxes[1] != 5 or any(dim != 1 for dim in boxes[2:]):
        raise ShapeError(f"the second bottom has shape {boxes}; expected (boxes, 5)")
    if not 1 <= min(pooled) <= max(pooled) <= MAX_POOLED:
        raise ShapeError(f"pooled size {tuple(pooled)}; expected 1 to {MAX_POOLED}")


def _regions(boxes: Array, images: int, scale: float) -> Iterator[tuple[int, Array]]:
    """The image index and the coordinates x1, y1, x2, y2 (float32) of each box.

    They must stay within `MAX_COORDINATE` after `scale` too.
    """
    rows = boxes.reshape(len(boxes), 5)
    indices = indices_of(rows[:, 0], images, "the image indices of the boxes")
    corners = rows[:, 1:]
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = corners * np.float32(scale)
    if not (np.abs([corners, scaled]) <= MAX_COORDINATE).all():
        raise ModelError(f"the boxes hold coordinates that are nan or beyond {MAX_COORDINATE:g}")
    return zip(indices.tolist(), corners, strict=True)


def _rounded(values: Array) -> Array:
    """To the nearest integer, halves away from zero, as C's round()."""
    whole: Array = np.copysign(np.floor(np.abs(values) + np.float32(0.5)), values)
    return whole


def _bins(start: np.float32, step: np.float32, count: int, length: int) -> list[slice]:
    """`count` neighboring bins along an axis, widened to whole pixels, cut to the image."""
    edges = np.arange(count + 1, dtype=np.float32) * step
    first = np.clip(np.floor(edges[:-1] + start), 0, length).astype(int)
    last = np.clip(np.ceil(edges[1:] + start), 0, length).astype(int)
    return [slice(a, b) for a, b in zip(first, last, strict=True)]


def _roi_pooling_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.roi_pooling_param
    _need_regions(bottoms, (param.pooled_h, param.pooled_w))
    return [(bottoms[1][0], bottoms[0][1], int(param.pooled_h), int(param.pooled_w))]


@layer("ROIPooling", shape=_roi_pooling_shape, host=True)
def roi_pooling(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The maximum in each of pooled_h x pooled_w bins of a box; 0 in a bin without pixels.

    Box edges are scaled by `spatial_scale` and rounded; the box reaches over its last pixel and
    is at least one pixel large. Source: ROIPoolingLayer of the Fast R-CNN fork.
    """
    param, (images, boxes) = params.roi_pooling_param, bottoms
    top = np.zeros(_roi_pooling_shape(params, [images.shape, boxes.shape])[0], np.float32)
    for pooled, (index, corners) in zip(
        top, _regions(boxes, len(images), param.spatial_scale), strict=True
    ):
        left, up, right, down = _rounded(corners * np.float32(param.spatial_scale))
        step_h = np.maximum(down - up + 1, 1) / np.float32(param.pooled_h)
        step_w = np.maximum(right - left + 1, 1) / np.float32(param.pooled_w)
        columns = _bins(left, step_w, param.pooled_w, images.shape[3])
        # First over the rows of a bin, for all columns, then over the columns.
        for i, rows in enumerate(_bins(up, step_h, param.pooled_h, images.shape[2])):
            if rows.start == rows.stop:
                continue
            highest = images[index, :, rows].max(axis=1)
            for j, span in enumerate(columns):
                if span.start < span.stop:
                    highest[:, span].max(axis=1, out=pooled[:, i, j])
    return [top]


def _psroi_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.psroi_pooling_param
    _need_regions(bottoms, (param.group_size, param.output_dim))
    if bottoms[0][1] != param.output_dim * param.group_size**2:
        raise ShapeError(
            f"{bottoms[0][1]} channels; expected output_dim x group_size x group_size = "
            f"{param.output_dim * param.group_size**2}"
        )
    return [(bottoms[1][0], param.output_dim, param.group_size, param.group_size)]


@layer("PSROIPooling", shape=_psroi_shape, host=True)
def psroi_pooling(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The mean in each of g x g bins of a box, each bin reading channels of its own.

    Bin (i, j) of top channel c reads channel (c * g + i) * g + j. Box edges are rounded, the far
    ones one pixel further, then scaled; the box is at least 0.1 large; a bin without pixels gives
    0. Source: PSROIPoolingLayer of the R-FCN fork.
    """
    param, (images, boxes) = params.psroi_pooling_param, bottoms
    grid, scale = param.group_size, np.float32(param.spatial_scale)
    n, _, height, width = images.shape
    parts = images.reshape(n, param.output_dim, grid, grid, height, width)
    top = np.zeros((len(boxes), param.output_dim, grid, grid), np.float32)
    for pooled, (index, corners) in zip(top, _regions(boxes, n, param.spatial_scale), strict=True):
        corners = _rounded(corners)
        left, up = corners[:2] * scale
        right, down = (corners[2:] + 1) * scale
        step_h = np.maximum(down - up, np.float32(0.1)) / np.float32(grid)
        step_w = np.maximum(right - left, np.float32(0.1)) / np.float32(grid)
        columns = _bins(left, step_w, grid, width)
        for i, rows in enumerate(_bins(up, step_h, grid, height)):
            for j, span in enumerate(columns):
                part = parts[index, :, i, j, rows, span]
                if part.size:
                    part.mean(axis=(1, 2), out=pooled[:, i, j])
    return [top]


def _roi_align_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.roi_align_param
    _need_regions(bottoms, (param.pooled_h, param.pooled_w))
    return [(bottoms[1][0], bottoms[0][1], int(param.pooled_h), int(param.pooled_w))]


@layer("ROIAlign", shape=_roi_align_shape, host=True)
def roi_align(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The mean of bilinear samples in each of pooled_h x pooled_w bins of a box, nothing rounded.

    A bin of size h x w has ceil(h) x ceil(w) samples, evenly spread; a box is at least one pixel
    large; samples more than a pixel outside the image are 0. Source: the Mask R-CNN paper (arXiv
    1703.06870) with Caffe2's RoIAlign (sampling_ratio 0), as ncnn's ROIAlign does.
    """
    param, (images, boxes) = params.roi_align_param, bottoms
    size = int(param.pooled_h), int(param.pooled_w)
    top = np.empty((len(boxes), images.shape[1], *size), np.float32)
    for pooled, (index, corners) in zip(
        top, _regions(boxes, len(images), param.spatial_scale), strict=True
    ):
        left, up, right, down = corners * np.float32(param.spatial_scale)
        rows = _sampling(up, down, size[0], images.shape[2])
        columns = _sampling(left, right, size[1], images.shape[3])
        np.matmul(np.matmul(rows, images[index]), columns.T, out=pooled)
    return [top]


def _sampling(start: np.float32, stop: np.float32, count: int, length: int) -> Array:
    """The weight of each of `length` pixels along one axis in the mean of each of `count` bins.

    The two axes separate, because the samples are a grid and bilinear weights are products.
    """
    step = max(stop - start, np.float32(1)) / np.float32(count)
    samples = ceil(step)
    # Samples outside the image weigh nothing; however large the box is, they are not made.
    apart = float(step) / samples
    first = max(0, floor((-1 - float(start)) / apart) - 1)
    last = min(count * samples, ceil((length - float(start)) / apart) + 1)
    numbers = np.arange(first, max(first, last))
    position = start + (numbers.astype(np.float32) + np.float32(0.5)) / samples * step
    inside = (position >= -1) & (position <= length)
    position = np.clip(position, 0, length - 1)
    low = position.astype(int)
    part = position - low
    weights = np.zeros((count, length), np.float32)
    np.add.at(weights, (numbers // samples, low), np.where(inside, 1 - part, 0))
    np.add.at(
        weights, (numbers // samples, np.minimum(low + 1, length - 1)), np.where(inside, part, 0)
    )
    weights /= np.float32(samples)
    return weights
