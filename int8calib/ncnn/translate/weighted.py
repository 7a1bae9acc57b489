"""ncnn's layers with weights as Caffe's: convolutions, products, factors and slopes of channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.translate.context import Translation, Translator
from int8calib.ncnn.translate.layers.rearranging import OUTPUT_CUT, SAME_PADDING

_SAME_UPPER, _SAME_LOWER = -233, -234
_BY_BOTTOM = -233
"""A count of factors that stands for: the second bottom has them."""

Pads = tuple[tuple[int, int], tuple[int, int]]
"""What is above and left, and what is below and right."""


def convolution(t: Translation) -> None:
    """Convolution and ConvolutionDepthWise, with the activation as a layer behind."""
    options, group = t.options, _group(t)
    _refuse_unusual(t, "dynamic_weight")
    if options.integer("int8_scale_term"):
        raise UnsupportedLayerError("it is INT8 already; load the float model")
    kernel, stride, dilation = _pair(t, "kernel"), _pair(t, "stride"), _pair(t, "dilation")
    out, taps = options.integer("num_output"), kernel[0] * kernel[1]
    channels = _input_channels(t, out, taps, group)
    blobs = t.weights((out, channels // group, *kernel), *[(out,)] * bool(_bias(t)))
    bottom, flat = _as_images(t, channels)
    pads = _padding(t)
    if pads is None or options.number("pad_value"):
        bottom, pads = _padded(t, bottom, pads), ((0, 0), (0, 0))
    top = t.between(":sums") if options.integer("activation_type") or flat else t.layer.tops[0]
    t.add(
        "Convolution",
        blobs,
        bottoms=(bottom,),
        tops=(top,),
        convolution_param={
            "num_output": out,
            "bias_term": len(blobs) > 1,
            "group": group,
            **_window_fields(kernel, stride, dilation, pads),
        },
    )
    _finish(t, top, flat=flat)


def _group(t: Translation) -> int:
    group = t.options.integer("group") if "DepthWise" in t.layer.type else 1
    if group < 1:
        raise ShapeError(f"group {group}; expected at least 1")
    return group


def _bias(t: Translation) -> int:
    return t.options.integer("bias_term")


def _refuse_unusual(t: Translation, *names: str) -> None:
    for name in names:
        if t.options.integer(name):
            raise UnsupportedLayerError(f"{name} {t.options.integer(name)} is not supported")


def _pair(t: Translation, name: str) -> tuple[int, int]:
    pair = t.options.integer(f"{name}_h"), t.options.integer(f"{name}_w")
    if min(pair) < 1:
        raise ShapeError(f"{name} {pair}; expected at least 1")
    return pair


def _input_channels(t: Translation, out: int, taps: int, group: int) -> int:
    """How many channels the weights are for."""
    count = t.options.integer("weight_data_size")
    if out < 1 or out % group or count < 1 or count * group % (out * taps):
        raise ShapeError(f"{count} weights do not divide into {out} outputs and {group} groups")
    return count * group // (out * taps)


def _padding(t: Translation) -> Pads | None:
    """The padding as given; None for SAME."""
    sides = [t.options.integer(f"pad_{side}") for side in ("top", "left", "bottom", "right")]
    if set(sides) in ({_SAME_UPPER}, {_SAME_LOWER}):
        return None
    if min(sides) < 0:
        raise ShapeError(f"padding {sides} must not be negative")
    return (sides[0], sides[1]), (sides[2], sides[3])


def _as_images(t: Translation, channels: int) -> tuple[str, bool]:
    """The bottom as images (N, C, H, W), and whether it was a vector, as its top will be."""
    shape = t.shape()
    if len(shape) == 4:
        return t.layer.bottoms[0], False
    flat = len(shape) == 2
    if flat and (shape[1] != channels or _pair(t, "kernel") != (1, 1) or _group(t) != 1):
        raise UnsupportedLayerError(f"a bottom {shape} is supported for kernels of 1x1 only")
    name = t.between(":images")
    dims = [0, channels, 1, 1] if flat else [0, 1, shape[1], shape[2]]
    t.add(
        "Reshape",
        suffix=":as_images",
        tops=(name,),
        reshape_param={"shape": {"dim": dims}},
    )
    return name, flat


def _padded(t: Translation, bottom: str, pads: Pads | None) -> str:
    """The bottom within its border, as a blob of its own; where `pads` is None, that of SAME."""
    name = t.between(":padded")
    blobs: dict[str, Any] = {"suffix": ":padding", "bottoms": (bottom,), "tops": (name,)}
    if pads is None:
        t.add_ncnn(kind=SAME_PADDING, **blobs)
        return name
    (above, left), (below, right) = pads
    value = t.options.number("pad_value")
    own = {0: above, 1: below, 2: left, 3: right, 5: value}
    t.add_ncnn(layer=NcnnLayer("Padding", "", (), (), own), **blobs)
    return name


def _window_fields(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], pads: Pads
) -> dict[str, Any]:
    """The windows as fields of a ConvolutionParameter."""
    (above, left), (below, right) = pads
    fields: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "dilation": dilation}
    if pads[0] == pads[1]:
        return {**fields, "pad": pads[0]}
    return {**fields, "pad_t": above, "pad_l": left, "pad_b": below, "pad_r": right}


def _finish(t: Translation, top: str, *, flat: bool = False) -> None:
    """From the sums to ncnn's top: the activation, and vectors as such."""
    if flat:
        name = t.layer.tops[0]
        if t.options.integer("activation_type"):
            name = t.between(":vector")
        t.add("Flatten", suffix=":as_vector", bottoms=(top,), tops=(name,))
        top = name
    if t.options.integer("activation_type"):
        t.add_activation(top)


def deconvolution(t: Translation) -> None:
    """Deconvolution and DeconvolutionDepthWise."""
    options, group = t.options, _group(t)
    _refuse_unusual(t, "dynamic_weight")
    if len(t.shape()) != 4:
        raise UnsupportedLayerError(f"bottom has shape {t.shape()}; images are supported")
    kernel, stride, dilation = _pair(t, "kernel"), _pair(t, "stride"), _pair(t, "dilation")
    out, pads = options.integer("num_output"), _padding(t)
    channels = _input_channels(t, out, kernel[0] * kernel[1], group)
    shape = (group, out // group, channels // group, *kernel)
    weight, *bias = t.weights(shape, *[(out,)] * bool(_bias(t)))
    sized = min(options.integer("output_h"), options.integer("output_w")) > 0
    if pads is None:  # SAME cuts nothing off unless the output's size is given
        pads = ((0, 0), (0, 0))
    elif sized and not any((*pads[0], *pads[1])):
        raise UnsupportedLayerError("the output's size without padding of SAME is not supported")
    else:
        sized = False
    more = options.integer("output_pad_bottom"), options.integer("output_pad_right")
    ends = [end - extra for end, extra in zip(pads[1], more, strict=True)]
    cut = (max(ends[0], 0), max(ends[1], 0))
    top = t.layer.tops[0]
    active, extended = bool(options.integer("activation_type")), min(ends) < 0
    sums = t.between(":sums") if active or extended or sized else top
    t.add(
        "Deconvolution",
        (
            np.ascontiguousarray(weight.swapaxes(1, 2)).reshape(channels, out // group, *kernel),
            *bias,
        ),
        tops=(sums,),
        convolution_param={
            "num_output": out,
            "bias_term": bool(bias),
            "group": group,
            **_window_fields(kernel, stride, dilation, (pads[0], cut)),
        },
    )
    if extended:
        # Behind the windows there is the bias alone.
        own = {1: max(-ends[0], 0), 3: max(-ends[1], 0), 6: out if bias else 0}
        name = t.between(":extended") if active or sized else top
        t.add_ncnn(
            bias,
            layer=NcnnLayer("Padding", "", (), (), own),
            suffix=":extension",
            bottoms=(sums,),
            tops=(name,),
        )
        sums = name
    if sized:
        name = t.between(":cut") if active else top
        t.add_ncnn(kind=OUTPUT_CUT, suffix=":cutting", bottoms=(sums,), tops=(name,))
        sums = name
    _finish(t, sums)


def inner_product(t: Translation) -> None:
    """InnerProduct: of the whole bottom, or of each row of a matrix that fits."""
    options = t.options
    if options.integer("int8_scale_term"):
        raise UnsupportedLayerError("it is INT8 already; load the float model")
    out, count = options.integer("num_output"), options.integer("weight_data_size")
    if out < 1 or count % out:
        raise ShapeError(f"{count} weights do not divide into {out} outputs")
    blobs = t.weights((out, count // out), *[(out,)] * bool(_bias(t)))
    shape = t.shape()
    by_row = len(shape) == 3 and shape[2] == count // out
    active = options.integer("activation_type")
    top = t.between(":sums") if active else t.layer.tops[0]
    t.add(
        "InnerProduct",
        blobs,
        tops=(top,),
        inner_product_param={
            "num_output": out,
            "bias_term": len(blobs) > 1,
            "axis": 2 if by_row else 1,
        },
    )
    _finish(t, top)


def batch_norm(t: Translation) -> None:
    """BatchNorm as the factor and offset of each channel that ncnn makes of it.

    It is no BatchNorm for the engine, which would fold it: weights are used as the model has them.
    """
    channels, eps = t.options.integer("channels"), np.float32(t.options.number("eps"))
    slope, mean, variance, offset = t.weights(*[(channels,)] * 4)
    deviation = np.sqrt(variance + eps)
    blobs = (slope / deviation, offset - slope * mean / deviation)
    t.add("Scale", blobs, scale_param={"bias_term": True})


def scale(t: Translation) -> None:
    """Scale by stored factors, or by those of a second bottom."""
    count, biased = t.options.integer("scale_data_size"), bool(_bias(t))
    if count != _BY_BOTTOM:
        blobs = t.weights(*[(count,)] * (2 if biased else 1))
        t.add("Scale", blobs, scale_param={"bias_term": biased})
        return
    if biased or len(t.layer.bottoms) != 2:
        raise UnsupportedLayerError("factors of a bottom with a stored bias are not supported")
    if len(t.shape(1)) != 2:
        raise UnsupportedLayerError(f"factors of shape {t.shape(1)}; ncnn takes a vector")
    t.add("Scale", scale_param={"axis": 0})


def bias(t: Translation) -> None:
    """Bias, one value a channel of images; to a vector or a matrix ncnn adds the first value."""
    (values,) = t.weights((t.options.integer("bias_data_size"),))
    if len(t.shape()) < 4:
        t.add_ncnn(layer=NcnnLayer("BinaryOp", "", (), (), {0: 0, 1: 1, 2: float(values[0])}))
    else:
        t.add("Bias", (values,))


def prelu(t: Translation) -> None:
    """PReLU, one slope for all or one a channel."""
    count = t.options.integer("num_slope")
    shared = count == 1
    t.add("PReLU", t.weights(() if shared else (count,)), prelu_param={"channel_shared": shared})


WEIGHTED: Mapping[str, Translator] = {
    "Convolution": convolution,
    "ConvolutionDepthWise": convolution,
    "Deconvolution": deconvolution,
    "DeconvolutionDepthWise": deconvolution,
    "InnerProduct": inner_product,
    "BatchNorm": batch_norm,
    "Scale": scale,
    "Bias": bias,
    "PReLU": prelu,
}
"""Translators by ncnn type."""
