"""Fast paths of convolution: geometry worked out once, results written into the engine's buffers.

Three forms, chosen by geometry: a matrix product on the images as they lie (1x1), multiply-adds
over flat images (depthwise, in its own file), and im2col with a matrix product (the rest).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.depthwise import plan_depthwise
from int8calib.caffe.layers.registry import FastPath, Scratch
from int8calib.caffe.layers.windows import Windows, window_view

COLUMNS = 1 << 20
"""Values of a column matrix (4 MiB): more misses the cache, less makes the products too small."""


def plan_convolution(
    windows: Windows,
    group: int,
    weights: Sequence[Array],
    bottoms: Sequence[Shape],
    scratch: Scratch,
) -> FastPath:
    """Plan bottoms of the given shapes (N, C, H, W); see `convolution` for the formula."""
    planned = [_plan_one(windows, group, weights, shape, scratch) for shape in bottoms]

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        for fast_path, bottom, top in zip(planned, images, tops, strict=True):
            fast_path([bottom], [top])

    return planned[0] if len(planned) == 1 else run


def _plan_one(
    windows: Windows, group: int, weights: Sequence[Array], shape: Shape, scratch: Scratch
) -> FastPath:
    if group == shape[1] == weights[0].shape[0]:
        return plan_depthwise(windows, weights, shape, scratch)
    if windows.pointwise and group == 1:
        return _plan_pointwise(weights)
    return _plan_im2col(windows, group, weights, shape, scratch)


def _plan_pointwise(weights: Sequence[Array]) -> FastPath:
    """1x1, stride 1: one matrix product per image, straight from its bottom."""
    rows = np.ascontiguousarray(weights[0].reshape(weights[0].shape[0], -1))
    bias = weights[1].reshape(-1, 1) if len(weights) > 1 else None

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for image, top in zip(bottoms[0], tops[0], strict=True):
            out = top.reshape(rows.shape[0], -1)
            np.matmul(rows, image.reshape(rows.shape[1], -1), out=out)
            if bias is not None:
                out += bias

    return run


def _plan_im2col(
    windows: Windows, group: int, weights: Sequence[Array], shape: Shape, scratch: Scratch
) -> FastPath:
    """The columns of all windows of some output rows, then one matrix product per group.

    As many output rows go at a time as make a column matrix of about `COLUMNS` values, so that
    the product reads it from the cache and large images need no large buffers.
    """
    _, channels, height, width = shape
    out_h, out_w = windows.output_size(height, width)
    rows = np.ascontiguousarray(weights[0].reshape(group, weights[0].shape[0] // group, -1))
    bias = weights[1].reshape(group, -1, 1) if len(weights) > 1 else None
    taps = channels * windows.kernel[0] * windows.kernel[1]
    step = max(1, min(out_h, COLUMNS // (taps * out_w)))
    columns = scratch((taps * step * out_w,))
    padded = scratch((1, channels, height + 2 * windows.pad[0], width + 2 * windows.pad[1]))
    inside = padded[:, :, windows.pad[0] :, windows.pad[1] :][:, :, :height, :width]

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for image, top in zip(bottoms[0], tops[0], strict=True):
            source = image[None]
            if windows.pad != (0, 0):
                padded.fill(0)
                np.copyto(inside, source)
                source = padded
            view = window_view(source, windows, (out_h, out_w))[0]
            out = top.reshape(group, rows.shape[1], -1)
            for first in range(0, out_h, step):
                part = view[:, :, :, first : first + step]
                filled = columns[: taps * part.shape[3] * out_w]
                np.copyto(filled.reshape(part.shape), part)
                product = out[:, :, first * out_w : (first + step) * out_w]
                np.matmul(rows, filled.reshape(group, rows.shape[2], -1), out=product)
                if bias is not None:
                    np.add(product, bias, out=product)

    return run
