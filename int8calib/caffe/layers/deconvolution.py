"""Deconvolution, grouped or not: images (N, C, H, W) and weights to larger images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import need_ndim
from int8calib.caffe.layers.windows import Windows, convolution_windows
from int8calib.errors import ShapeError


def _spread_size(windows: Windows, height: int, width: int) -> tuple[int, int]:
    """The size of all windows spread out, before the padding is cut off."""
    return (
        windows.stride[0] * (height - 1) + windows.extent[0],
        windows.stride[1] * (width - 1) + windows.extent[1],
    )


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.convolution_param
    windows = convolution_windows(param)
    tops: list[Shape] = []
    for shape in bottoms:
        need_ndim([shape], 4)
        if (
            min(param.num_output, param.group) < 1
            or shape[1] % param.group
            or param.num_output % param.group
        ):
            raise ShapeError(
                f"{shape[1]} channels in and num_output {param.num_output} "
                f"do not divide into {param.group} groups"
            )
        spread = _spread_size(windows, *shape[2:])
        size = spread[0] - 2 * windows.pad[0], spread[1] - 2 * windows.pad[1]
        if min(size) < 1:
            raise ShapeError(f"padding {windows.pad} leaves nothing of {spread[0]}x{spread[1]}")
        tops.append((shape[0], int(param.num_output), *size))
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
            inside = spread[
                :,
                windows.pad[0] : windows.pad[0] + outputs.shape[2],
                windows.pad[1] : windows.pad[1] + outputs.shape[3],
            ]
            matrix = columns.reshape(group, rows.shape[1], -1)
            for image, top in zip(images, outputs, strict=True):
                np.matmul(rows, image.reshape(group, rows.shape[2], -1), out=matrix)
                spread.fill(0)
                _add_taps(columns, windows, spread)
                np.add(inside, bias, out=top)

    return run


@layer("Deconvolution", shape=_shape, weights=_weights, plan=_plan, macs=_macs)
def deconvolution(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Every pixel of channel c adds weight[c, o] times itself to a window of each top channel o.

    top[n, o] = bias[o] + the sum of those windows, `stride` apart, `pad` cut off all around.
    Source: Caffe's DeconvolutionLayer, the transpose of its convolution. Weights
    (C, num_output / group, kernel_h, kernel_w), the channels of a group feed its outputs only.
    """
    param = params.convolution_param
    windows, group = convolution_windows(param), param.group
    tops = []
    for images in bottoms:
        n, channels, height, width = images.shape
        rows = weights[0].reshape(group, channels // group, -1).transpose(0, 2, 1)
        columns = np.matmul(rows, images.reshape(n, group, channels // group, -1))
        spread = np.zeros((n * param.num_output, *_spread_size(windows, height, width)), np.float32)
        _add_taps(columns.reshape(-1, *windows.kernel, height, width), windows, spread)
        size = _shape(params, [images.shape])[0]
        top, left = windows.pad
        cut = spread[:, top : top + size[2], left : left + size[3]].reshape(size)
        tops.append(cut + weights[1].reshape(-1, 1, 1) if len(weights) > 1 else cut.copy())
    return tops
