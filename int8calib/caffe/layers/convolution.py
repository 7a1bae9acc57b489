"""Convolution, grouped and depthwise: images (N, C, H, W) and weights to images.

Its fast paths work the geometry out once and write into the engine's buffers. There are three,
chosen by geometry: a matrix product on the images as they lie (1x1), multiply-adds over flat
images (depthwise, in its own file), and im2col with a matrix product (the rest).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.depthwise import plan_depthwise, suits_depthwise
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import axis_index, need_ndim
from int8calib.caffe.layers.windows import (
    Windows,
    convolution_windows,
    pad_images,
    window_view,
)
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.limits import check_shape

DEPTHWISE_TYPES = ("ConvolutionDepthwise", "DepthwiseConvolution")

COLUMNS = 1 << 20
"""Values of a column matrix (4 MiB): more misses the cache, less makes the products too small."""

MOST_COLUMNS = 1 << 26
"""Values of the column matrix of a plain function (256 MiB), if one image's is not larger."""

MOST_PRODUCTS = (1 << 16) - 1
"""Matrix products in one call, if one image does not need more: GPUs count blocks in 16 bits."""


def groups(params: LayerParameter) -> int:
    """Count the groups of a convolution.

    Parameters
    ----------
    params
        A Convolution, or one of `DEPTHWISE_TYPES`, which have one group per output channel.

    Returns
    -------
    int
        The number of groups.
    """
    param = params.convolution_param
    return int(param.num_output if params.type in DEPTHWISE_TYPES else param.group)


def check_images(params: LayerParameter, shape: Shape, group: int) -> None:
    """Refuse a shape unless it is of images whose channels divide into the groups.

    Caffe convolves over any number of axes behind `axis`; here they are always two.
    """
    param = params.convolution_param
    if len(shape) == 5 and axis_index(param.axis, 5) == 1:
        raise UnsupportedLayerError(f"bottom has shape {shape}: 3-d convolution is not supported")
    need_ndim([shape], 4)
    if axis_index(param.axis, 4) != 1:
        raise UnsupportedLayerError(f"channels on axis {param.axis} are not supported; 1 is")
    if param.num_output < 1 or group < 1 or shape[1] % group or param.num_output % group:
        raise ShapeError(
            f"{shape[1]} channels in and num_output {param.num_output} "
            f"do not divide into {group} groups"
        )


def images_at_once(columns: int, group: int) -> int:
    """Count the images whose columns a plain function makes together.

    Parameters
    ----------
    columns
        Values of the column matrix of one image.
    group
        Matrix products that one image needs.

    Returns
    -------
    int
        At least 1; see `MOST_COLUMNS` and `MOST_PRODUCTS`.
    """
    return max(1, min(MOST_COLUMNS // max(columns, 1), MOST_PRODUCTS // group))


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.convolution_param
    windows = convolution_windows(param)
    tops: list[Shape] = []
    for shape in bottoms:
        check_images(params, shape, groups(params))
        check_shape((*shape[:2], *windows.padded_size(*shape[2:])), "the padded bottom")
        size = windows.output_size(*shape[2:])
        taps = windows.kernel[0] * windows.kernel[1]
        check_shape((shape[1] * taps, size[1]), "what a row of windows reads")
        tops.append((shape[0], int(param.num_output), *size))
    return tops


def _weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.convolution_param
    kernel = convolution_windows(param).kernel
    weight = (int(param.num_output), bottoms[0][1] // max(groups(params), 1), *kernel)
    return [weight, (int(param.num_output),)] if param.bias_term else [weight]


def _macs(params: LayerParameter, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    kernel = convolution_windows(params.convolution_param).kernel
    per_value = bottoms[0][1] // groups(params) * kernel[0] * kernel[1]
    return sum(n * c * h * w for n, c, h, w in tops) * per_value


def _plan(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    windows = convolution_windows(params.convolution_param)
    paths = [_plan_one(windows, groups(params), weights, shape, scratch) for shape in bottoms]

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        for fast_path, bottom, top in zip(paths, images, tops, strict=True):
            fast_path([bottom], [top])

    return paths[0] if len(paths) == 1 else run


@layer("Convolution", *DEPTHWISE_TYPES, shape=_shape, weights=_weights, plan=_plan, macs=_macs)
def convolution(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """top[n, o] = bias[o] + sum over its group's channels c and taps of weight[o, c] * window.

    Source: Caffe's BaseConvolutionLayer (cross-correlation, no kernel flip); every bottom passes
    through the same weights. Weights (num_output, C / group, kernel_h, kernel_w), bias optional.
    """
    windows = convolution_windows(params.convolution_param)
    weight, group = weights[0], groups(params)
    rows = weight.reshape(group, weight.shape[0] // group, -1)
    tops = []
    for images in bottoms:
        size = windows.output_size(*images.shape[2:])
        step = images_at_once(group * rows.shape[2] * size[0] * size[1], group)
        parts = [
            _products(images[first : first + step], windows, rows, size)
            for first in range(0, max(len(images), 1), step)
        ]
        top = parts[0] if len(parts) == 1 else namespace(images).concatenate(parts)
        if len(weights) > 1:
            top += weights[1].reshape(-1, 1, 1)
        tops.append(top)
    return tops


def _products(images: Array, windows: Windows, rows: Array, size: tuple[int, int]) -> Array:
    """All windows of images (N, C, H, W) times rows (group, outputs / group, values of one)."""
    padded = pad_images(images, windows)
    group, outputs, values = rows.shape
    columns = window_view(padded, windows, size).reshape(
        len(images), group, values, size[0] * size[1]
    )
    products: Array = namespace(images).matmul(rows, columns)
    return products.reshape(len(images), group * outputs, *size)


def _plan_one(
    windows: Windows, group: int, weights: Sequence[Array], shape: Shape, scratch: Scratch
) -> FastPath:
    if group == shape[1] == weights[0].shape[0] and suits_depthwise(windows):
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
    padded = scratch((1, channels, *windows.padded_size(height, width)))
    above, left = windows.pad_begin
    inside = padded[:, :, above : above + height, left : left + width]

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for image, top in zip(bottoms[0], tops[0], strict=True):
            source = image[None]
            if windows.padded:
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
