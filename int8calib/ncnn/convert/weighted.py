"""Caffe layers with weights as ncnn layers."""

from __future__ import annotations

import numpy as np

from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.layers.windows import convolution_windows
from int8calib.ncnn.convert.context import Conversion, real, sizes
from int8calib.ncnn.param import Value

ADD, MUL = 0, 2
"""Operations of BinaryOp."""
FROM_BOTTOM = -233


def convolution(c: Conversion) -> None:
    """Convolution, or ConvolutionDepthWise where there are groups."""
    group = groups(c.params)
    params = _windows(c)
    if group != 1:
        params[7] = group
    c.top_axes = 1 if c.axes() == 1 else None
    c.add("Convolution" if group == 1 else "ConvolutionDepthWise", params, *c.layer.weights)


def _windows(c: Conversion) -> dict[int, Value]:
    """num_output, kernel, dilation, stride, padding, bias and the count of weights."""
    param = c.params.convolution_param
    w = convolution_windows(param)
    params: dict[int, Value] = {0: int(param.num_output), 1: w.kernel[1]}
    if w.kernel[0] != w.kernel[1] or (param.HasField("kernel_h") and param.HasField("kernel_w")):
        params[11] = w.kernel[0]
    params[2] = w.dilation[1]
    if w.dilation[0] != w.dilation[1]:
        params[12] = w.dilation[0]
    params[3] = w.stride[1]
    if w.stride[0] != w.stride[1] or (param.HasField("stride_h") and param.HasField("stride_w")):
        params[13] = w.stride[0]
    params[4] = w.pad_begin[1]
    even = w.pad_begin == w.pad_end
    if (
        w.pad_begin[0] != w.pad_begin[1]
        or not even
        or (param.HasField("pad_h") and param.HasField("pad_w"))
    ):
        params[14] = w.pad_begin[0]
    if not even:
        params |= {15: w.pad_end[1], 16: w.pad_end[0]}
    return params | {5: int(param.bias_term), 6: c.layer.weights[0].size}


def deconvolution(c: Conversion) -> None:
    """Deconvolution, or DeconvolutionDepthWise where there are groups.

    Caffe's weights are (in, out / group, h, w); ncnn wants out before in, group by group.
    """
    weight, *bias = c.layer.weights
    group = groups(c.params)
    outputs, *kernel = weight.shape[1:]
    swapped = weight.reshape(group, -1, outputs, *kernel).swapaxes(1, 2)
    params = _windows(c)
    if group != 1:
        params[7] = group
    c.add("Deconvolution" if group == 1 else "DeconvolutionDepthWise", params, swapped, *bias)


def inner_product(c: Conversion) -> None:
    """InnerProduct; over a later axis than 1 as one of a 2-d blob."""
    param = c.params.inner_product_param
    weight, *bias = c.layer.weights
    out = int(param.num_output)
    if param.transpose:
        weight = weight.reshape(-1, out).T
    params: dict[int, Value] = {0: out, 1: int(param.bias_term), 2: weight.size}
    axis = c.axis(param.axis) % c.axes()
    if axis == 0:
        c.top_axes = 1
        bottoms = None
        if c.axes() == 2:
            bottoms = (c.between("_flat"),)
            c.add("Flatten", tops=bottoms, suffix="_flatten")
        c.add("InnerProduct", params, weight, *bias, bottoms=bottoms)
        return
    rows = (c.between("_rows"),)
    inputs = weight.size // out
    c.add("Reshape", {0: inputs, 1: -1}, tops=rows, suffix="_reshape")
    if len(c.top_shape()) == 3:
        c.add("InnerProduct", params, weight, *bias, bottoms=rows)
        return
    product = (c.between("_product"),)
    c.add("InnerProduct", params, weight, *bias, bottoms=rows, tops=product)
    c.add("Reshape", sizes(c.top_shape()), bottoms=product, suffix="_shape")


def batch_norm(c: Conversion) -> None:
    """BatchNorm with eps added to the variance, as caffe2ncnn writes it."""
    mean, variance, *moving = (blob.reshape(-1) for blob in c.layer.weights)
    factor = np.float32(1)
    if moving:
        factor = np.float32(0) if moving[0][0] == 0 else np.float32(1) / moving[0][0]
    channels = len(mean)
    param = c.params.batch_norm_param
    eps = np.float32(param.eps)
    variance = variance * factor
    variance = variance + eps if param.add_eps_before_sqrt else np.square(np.sqrt(variance) + eps)
    c.add(
        "BatchNorm",
        {0: channels},
        np.ones(channels),
        mean * factor,
        variance,
        np.zeros(channels),
    )


def bn(c: Conversion) -> None:
    """BN of two blobs (SegNet, statistics folded in) or four (PSPNet)."""
    factor, shift, *stored = (blob.reshape(-1) for blob in c.layer.weights)
    param = c.params.bn_param
    if stored:
        variance = stored[1] + np.float32(param.eps)
        c.add("BatchNorm", {0: len(factor)}, factor, stored[0], variance, shift)
    elif param.bn_mode == type(param).INFERENCE:
        c.add("Scale", {0: len(factor), 1: 1}, factor, shift)
    else:
        raise c.refused("bn_mode", "statistics of the batch itself are not ncnn's")


def scale(c: Conversion) -> None:
    """Scale, one factor a channel; a scalar or a factor a value as BinaryOp."""
    param = c.params.scale_param
    if len(c.layer.bottoms) > 1:
        _scale_by_bottom(c)
        return
    channels = c.shape()[1] if len(c.shape()) > 1 else 1
    factor = c.layer.weights[0]
    if param.num_axes == 0:
        _scalars(c)
    elif c.axis(param.axis) % c.axes() == 0 and factor.size == channels:
        c.add("Scale", {0: factor.size, 1: int(param.bias_term)}, *c.layer.weights)
    elif c.axis(param.axis) % c.axes() == 0 and factor.shape == c.shape()[1:]:
        _whole_blobs(c)
    else:
        raise c.refused(
            f"axis {param.axis}, num_axes {param.num_axes}", "ncnn scales channels only"
        )


def _scalars(c: Conversion) -> None:
    values = [float(blob.reshape(-1)[0]) for blob in c.layer.weights]
    product = (c.between("_product"),)
    last = len(values) == 1
    c.add("BinaryOp", {0: MUL, 1: 1, 2: real(values[0])}, tops=c.layer.tops if last else product)
    if not last:
        c.add("BinaryOp", {0: ADD, 1: 1, 2: real(values[1])}, bottoms=product, suffix="_bias")


def _whole_blobs(c: Conversion) -> None:
    """Factor and offset of the blob's own shape, from MemoryData."""
    bottom = c.layer.bottoms[0]
    for i, (blob, operation) in enumerate(zip(c.layer.weights, (MUL, ADD), strict=False)):
        data = c.between(f"_data{i}")
        c.add(
            "MemoryData",
            sizes((1, *blob.shape)),
            blob,
            bottoms=(),
            tops=(data,),
            suffix=f"_data{i}",
        )
        last = i == len(c.layer.weights) - 1
        top = c.layer.tops[0] if last else c.between("_product")
        c.add(
            "BinaryOp",
            {0: operation},
            bottoms=(bottom, data),
            tops=(top,),
            suffix="" if last else "_product",
        )
        bottom = top  # type: ignore[assignment]


def _scale_by_bottom(c: Conversion) -> None:
    param = c.params.scale_param
    factor = c.shape(1)
    if [size for size in factor if size != 1] not in ([c.shape()[1]], []):
        raise c.refused("second bottom", f"has shape {factor}; ncnn takes one factor a channel")
    tops = c.layer.tops if not param.bias_term else (c.between("_product"),)
    if c.axes(1) == 1:
        c.add("Scale", {0: FROM_BOTTOM, 1: 0}, tops=tops)
    else:
        c.add("BinaryOp", {0: MUL}, tops=tops)
    if param.bias_term:
        offset = c.layer.weights[0]
        c.add("Bias", {0: offset.size}, offset, bottoms=tops, suffix="_bias")


def bias(c: Conversion) -> None:
    """Bias, one offset a channel, or the second bottom added."""
    if len(c.layer.bottoms) > 1:
        c.add("BinaryOp", {0: ADD})
        return
    param, offset = c.params.bias_param, c.layer.weights[0]
    if param.num_axes == 0:
        c.add("BinaryOp", {0: ADD, 1: 1, 2: real(float(offset.reshape(-1)[0]))})
    elif c.axis(param.axis) % c.axes() == 0 and offset.size == c.shape()[1]:
        c.add("Bias", {0: offset.size}, offset)
    else:
        raise c.refused(
            f"axis {param.axis}, num_axes {param.num_axes}", "ncnn adds to channels only"
        )


def axpy(c: Conversion) -> None:
    """a * x + y by two BinaryOps."""
    a, x, y = c.layer.bottoms
    product = (c.between("_product"),)
    c.top_axes = c.axes(1)
    c.add("BinaryOp", {0: MUL}, bottoms=(x, a), tops=product, suffix="_product")
    c.add("BinaryOp", {0: ADD}, bottoms=(*product, y))


def prelu(c: Conversion) -> None:
    """PReLU, one slope a channel or one for all."""
    slope = c.layer.weights[0]
    c.add("PReLU", {0: slope.size}, slope)


def normalize(c: Conversion) -> None:
    """Normalize of the SSD fork."""
    param, factor = c.params.norm_param, c.layer.weights[0]
    if not param.add_eps_before_sqrt:
        raise c.refused("add_eps_before_sqrt: false", "ncnn adds eps to the sum of squares")
    c.add(
        "Normalize",
        {
            0: int(param.across_spatial),
            1: int(param.channel_shared),
            2: real(param.eps),
            3: factor.size,
        },
        factor,
    )


def parameter(c: Conversion) -> None:
    """Parameter: a blob of its own, as MemoryData."""
    blob = c.layer.weights[0]
    shape = blob.shape if len(blob.shape) < 4 or blob.shape[0] != 1 else blob.shape[1:]
    c.top_axes = len(shape)
    c.add("MemoryData", sizes((1, *shape)), blob)


WEIGHTED = {
    "Convolution": convolution,
    "ConvolutionDepthwise": convolution,
    "DepthwiseConvolution": convolution,
    "Deconvolution": deconvolution,
    "InnerProduct": inner_product,
    "BatchNorm": batch_norm,
    "BN": bn,
    "Scale": scale,
    "Bias": bias,
    "Axpy": axpy,
    "PReLU": prelu,
    "Normalize": normalize,
    "Parameter": parameter,
}
"""Converters by Caffe type."""
