"""Deconvolution, grouped or not: images (N, C, H, W) and weights to larger images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.convolution import check_images, images_at_once
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.windows import Windows, convolution_windows
from int8calib.errors import ShapeError
from int8calib.limits import check_shape


def _spread_size(windows: Windows, height: int, width: int) -> tuple[int, int]:
    """The size of all windows spread out, before the padding is cut off."""
    return (
        windows.stride[0] * (height - 1) + windows.extent[0],
        windows.stride[1] * (width - 1) + windows.extent[1],
    )


def _cut(windows: Windows, height: int, width: int) -> tuple[slice, slice]:
    """What the padding leaves of the windows spread out."""
    above, left = windows.pad_begin
    rows, columns = (
        slice(above, height - windows.pad_end[0]),
        slice(left, width - windows.pad_end[1]),
    )
    if rows.stop <= above or columns.stop <= left:
        raise ShapeError(
            f"padding {windows.pad_begin} and {windows.pad_end} leaves nothing of {height}x{width}"
        )
    return rows, columns


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.convolution_param
    windows = convolution_windows(param)
    tops: list[Shape] = []
    for shape in bottoms:
        check_images(params, shape, param.group)
        spread = _spread_size(windows, *shape[2:])
        check_shape((shape[0], int(param.num_output), *spread), "the top with its padding")
        taps = windows.kernel[0] * windows.kernel[1]
        check_shape((int(param.num_output), taps, *shape[2:]), "what the windows add")
        size = _cut(windows, *spread)
        tops.append((shape[0], int(param.num_output), *(axis.stop - axis.start for axis in size)))
    return tops


def _weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.convolution_param
    kernel = convolution_windows(param).kernel
    weight = (bottoms[0][1], int(param.num_output // max(param.group, 1)), *kernel)
    return [weight, (int(param.num_output),)] if param.bias_term else [weight]


def _macs(params: LayerParameter, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    param = params.convolution_param
    kernel = convolution_windows(param).kernel
    per_value = int(param.num_output // param.group) * kernel[0] * kernel[1]
    return sum(n * c * h * w for n, c, h, w in bottoms) * per_value


def _add_taps(columns: Array, windows: Windows, spread: Array) -> None:
    """Add columns (channels, kernel_h, kernel_w, H, W) where they belong in (channels, ...)."""
    height, width = columns.shape[3:]
    for row in range(windows.kernel[0]):
        for column in range(windows.kernel[1]):
            top, left = row * windows.dilation[0], column * windows.dilation[1]
            target = spread[
                :,
                top : top + (height - 1) * windows.stride[0] + 1 : windows.stride[0],
                left : left + (width - 1) * windows.stride[1] + 1 : windows.stride[1],
            ]
            target += columns[:, row, column]


def _plan(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    """For each image one matrix product per group, and its columns added up in place."""
    windows, group = convolution_windows(params.convolution_param), params.convolution_param.group
    num_output = int(params.convolution_param.num_output)
    channels = bottoms[0][1]
    rows = weights[0].reshape(group, channels // group, -1).transpose(0, 2, 1).copy()
    bias = weights[1].reshape(-1, 1, 1) if len(weights) > 1 else np.zeros((1, 1, 1), np.float32)
    buffers = []
    for _, _, height, width in bottoms:
        columns = scratch((num_output, *windows.kernel, height, width))
        spread = scratch((num_output, *_spread_size(windows, height, width)))
        buffers.append((columns, spread))

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for images, outputs, (columns, spread) in zip(bottoms, tops, buffers, strict=True):
            down, across = _cut(windows, *spread.shape[1:])
            inside = spread[:, down, across]
            matrix = columns.reshape(group, rows.shape[1], -1)
            for image, top in zip(images, outputs, strict=True):
                np.matmul(rows, image.reshape(group, rows.shape[2], -1), out=matrix)
                spread.fill(0)
                _add_taps(columns, windows, spread)
                np.add(inside, bias, out=top)

    return run


def _add_products(images: Array, windows: Windows, rows: Array, spread: Array) -> None:
    """Add what the pixels of images (N, C, H, W) give to windows (N * outputs, ...)."""
    height, width = images.shape[2:]
    pixels = images.reshape(len(images), rows.shape[0], rows.shape[2], height * width)
    columns = namespace(images).matmul(rows, pixels)
    _add_taps(columns.reshape(-1, *windows.kernel, height, width), windows, spread)


@layer("Deconvolution", shape=_shape, weights=_weights, plan=_plan, macs=_macs)
def deconvolution(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Every pixel of channel c adds weight[c, o] times itself to a window of each top channel o.

    top[n, o] = bias[o] + the sum of those windows, `stride` apart, the padding cut off.
    Source: Caffe's DeconvolutionLayer, the transpose of its convolution. Weights
    (C, num_output / group, kernel_h, kernel_w), the channels of a group feed its outputs only.
    """
    param = params.convolution_param
    windows, group = convolution_windows(param), param.group
    tops = []
    for images in bottoms:
        n, channels, height, width = images.shape
        rows = weights[0].reshape(group, channels // group, -1).transpose(0, 2, 1)
        full = _spread_size(windows, height, width)
        spread = namespace(images).zeros((n * param.num_output, *full), np.float32)
        step = images_at_once(group * rows.shape[1] * height * width, group)
        for first in range(0, n, step):
            part = images[first : first + step]
            begin, count = first * param.num_output, len(part) * param.num_output
            _add_products(part, windows, rows, spread[begin : begin + count])
        down, across = _cut(windows, *full)
        cut = spread.reshape(n, -1, *full)[:, :, down, across]
        tops.append(cut + weights[1].reshape(-1, 1, 1) if len(weights) > 1 else cut.copy())
    return tops
