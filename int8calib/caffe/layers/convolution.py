"""Convolution, grouped and depthwise: images (N, C, H, W) and weights to images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.convolution_kernels import plan_convolution
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import need_ndim
from int8calib.caffe.layers.windows import convolution_windows, pad_images, window_view
from int8calib.errors import ShapeError

DEPTHWISE_TYPES = ("ConvolutionDepthwise", "DepthwiseConvolution")


def groups(params: LayerParameter) -> int:
    """The group count; the depthwise types of forks have one group per output channel."""
    param = params.convolution_param
    return int(param.num_output if params.type in DEPTHWISE_TYPES else param.group)


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.convolution_param
    group = groups(params)
    tops: list[Shape] = []
    for shape in bottoms:
        need_ndim([shape], 4)
        if param.num_output < 1 or group < 1 or shape[1] % group or param.num_output % group:
            raise ShapeError(
                f"{shape[1]} channels in and num_output {param.num_output} "
                f"do not divide into {group} groups"
            )
        size = convolution_windows(param).output_size(shape[2], shape[3])
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
    return plan_convolution(windows, groups(params), weights, bottoms, scratch)


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
    num_output = weight.shape[0]
    rows = weight.reshape(group, num_output // group, -1)
    tops = []
    for images in bottoms:
        n = images.shape[0]
        size = windows.output_size(*images.shape[2:])
        view = window_view(pad_images(images, windows), windows, size)
        columns = view.reshape(n, group, rows.shape[2], size[0] * size[1])
        top = np.matmul(rows, columns).reshape(n, num_output, *size)
        if len(weights) > 1:
            top += weights[1].reshape(-1, 1, 1)
        tops.append(top)
    return tops
