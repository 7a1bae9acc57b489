"""Activations: one value in, one value out, the shape unchanged; PReLU, CReLU and Softmax.

Dropout, which leaves values alone or scales them, is one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.elementwise import elementwise
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import axis_index, same_shape


def relu_limits(params: LayerParameter) -> tuple[float | None, float | None]:
    """Read the limits of a fork's ReLU.

    Parameters
    ----------
    params
        The ReLU layer.

    Returns
    -------
    tuple
        The lower and the upper limit of its top, None where there is none. The lower one is
        applied last.

    Notes
    -----
    Source: ReLULayer of the Synopsys fork, where 0 stands for no limit: `relu6` and `maximum` are
    upper limits (of `maximum`, values above 0), `minimum` is a lower one.
    """
    param = params.relu_param
    upper = [6.0] if param.relu6 else []
    if param.maximum > 0:
        upper.append(param.maximum)
    return (param.minimum if param.minimum else None), min(upper, default=None)


def homogeneous_limit(kind: str, params: LayerParameter) -> float:
    """Return up to which magnitude of its top an activation scales along with its bottom.

    Parameters
    ----------
    kind
        ``ReLU``, ``ReLU6`` or ``Clip``.
    params
        The layer.

    Returns
    -------
    float
        Infinite where it always does, 0 where it never does.
    """
    lower: float | None
    upper: float | None
    if kind == "ReLU":
        lower, upper = relu_limits(params)
    else:
        clip = params.clip_param
        lower, upper = (0.0, 6.0) if kind == "ReLU6" else (clip.min, clip.max)
    limits = [np.inf if upper is None else float(upper)]
    if lower:
        limits.append(-float(lower))
    return max(0.0, min(limits))


@elementwise("ReLU")
def relu(params: LayerParameter, x: Array, out: Array) -> None:
    """x if x > 0, else negative_slope * x; then kept within `relu_limits`.

    Source: Caffe's ReLULayer, and that of the Synopsys fork for the limits.
    """
    xp = namespace(x)
    slope = np.float32(params.relu_param.negative_slope)
    if slope:
        xp.copyto(out, xp.where(x > 0, x, x * slope))
    else:
        xp.maximum(x, 0, out=out)
    lower, upper = relu_limits(params)
    if upper is not None:
        xp.minimum(out, np.float32(upper), out=out)
    if lower is not None:
        xp.maximum(out, np.float32(lower), out=out)


@elementwise("ReLU6")
def relu6(params: LayerParameter, x: Array, out: Array) -> None:
    """min(max(x, 0), 6). Source: ReLU6Layer of the MobileNet forks."""
    namespace(x).clip(x, 0, 6, out=out)


@elementwise("SeLU", "SeLu")
def selu(params: LayerParameter, x: Array, out: Array) -> None:
    """lambda * x if x > 0, else lambda * alpha * (exp(x) - 1).

    Source: SeLULayer of the Synopsys fork, arXiv 1706.02515.
    """
    xp, param = namespace(x), params.selu_param
    factor = getattr(param, "lambda")  # a word of Python
    negative = np.float32(param.alpha * factor) * xp.expm1(xp.minimum(x, 0))
    xp.copyto(out, xp.where(x > 0, np.float32(factor) * x, negative))


@elementwise("ELU")
def elu(params: LayerParameter, x: Array, out: Array) -> None:
    """x if x > 0, else alpha * (exp(x) - 1). Source: Caffe's ELULayer."""
    xp = namespace(x)
    negative = np.float32(params.elu_param.alpha) * xp.expm1(xp.minimum(x, 0))
    xp.copyto(out, xp.where(x > 0, x, negative))


def sigmoid_of(x: Array) -> Array:
    """1 / (1 + exp(-x)), written as 0.5 * tanh(x / 2) + 0.5 so that no exp overflows."""
    top: Array = namespace(x).tanh(x * np.float32(0.5))
    top *= np.float32(0.5)
    top += np.float32(0.5)
    return top


@elementwise("Sigmoid")
def sigmoid(params: LayerParameter, x: Array, out: Array) -> None:
    """1 / (1 + exp(-x)). Source: Caffe's SigmoidLayer."""
    namespace(x).copyto(out, sigmoid_of(x))


@elementwise("TanH")
def tanh(params: LayerParameter, x: Array, out: Array) -> None:
    """tanh(x). Source: Caffe's TanHLayer."""
    namespace(x).tanh(x, out=out)


@elementwise("Swish")
def swish(params: LayerParameter, x: Array, out: Array) -> None:
    """x / (1 + exp(-beta * x)). Source: Caffe's SwishLayer."""
    gate = sigmoid_of(x * np.float32(params.swish_param.beta))
    namespace(x).multiply(x, gate, out=out)


@elementwise("HardSwish")
def hard_swish(params: LayerParameter, x: Array, out: Array) -> None:
    """x * min(max(x + 3, 0), 6) / 6. Source: the MobileNetV3 paper (arXiv 1905.02244)."""
    xp = namespace(x)
    gate = xp.clip(x + np.float32(3), 0, 6)
    gate *= np.float32(1 / 6)
    xp.multiply(x, gate, out=out)


@elementwise("Mish")
def mish(params: LayerParameter, x: Array, out: Array) -> None:
    """x * tanh(log(1 + exp(x))). Source: arXiv 1908.08681, MishLayer of the YOLO v4 forks."""
    xp = namespace(x)
    xp.multiply(x, xp.tanh(xp.logaddexp(x, np.float32(0))), out=out)


@elementwise("BNLL")
def bnll(params: LayerParameter, x: Array, out: Array) -> None:
    """log(1 + exp(x)). Source: Caffe's BNLLLayer."""
    namespace(x).logaddexp(x, np.float32(0), out=out)


@elementwise("Clip")
def clip(params: LayerParameter, x: Array, out: Array) -> None:
    """min(max(x, `min`), `max`). Source: Caffe's ClipLayer."""
    param = params.clip_param
    namespace(x).clip(x, np.float32(param.min), np.float32(param.max), out=out)


def dropout_factor(params: LayerParameter) -> float:
    """Read what a Dropout multiplies with when it does not drop.

    Parameters
    ----------
    params
        The Dropout layer.

    Returns
    -------
    float
        1, or 1 - ratio with `scale_train: false`, where training did not scale.

    Notes
    -----
    Source: DropoutLayer of the SSD fork; `scale_train` is true by default, as in Caffe.
    """
    param = params.dropout_param
    return 1.0 if param.scale_train else 1.0 - param.dropout_ratio


@elementwise("Dropout")
def dropout(params: LayerParameter, x: Array, out: Array) -> None:
    """x times `dropout_factor`: dropping out is for training. Source: Caffe's DropoutLayer."""
    factor = dropout_factor(params)
    if factor != 1:
        namespace(x).multiply(x, np.float32(factor), out=out)
    elif out is not x:
        namespace(x).copyto(out, x)


@elementwise("Threshold")
def threshold(params: LayerParameter, x: Array, out: Array) -> None:
    """1 if x > threshold, else 0. Source: Caffe's ThresholdLayer."""
    namespace(x).copyto(out, x > np.float32(params.threshold_param.threshold))


def _prelu_weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return [() if params.prelu_param.channel_shared else (bottoms[0][1],)]


def _plan_prelu(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    slope = _slopes(weights[0], len(bottoms[0]))
    negative = scratch(bottoms[0][1:])

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for image, top in zip(bottoms[0], tops[0], strict=True):
            np.minimum(image, 0, out=negative)
            np.multiply(negative, slope, out=negative)
            np.maximum(image, 0, out=top)
            np.add(top, negative, out=top)

    return run


def _slopes(weight: Array, ndim: int) -> Array:
    """The slopes shaped to broadcast over blobs of `ndim` axes, channels on axis 1."""
    return weight.reshape(-1, *(1,) * (ndim - 2))


@layer("PReLU", shape=same_shape, weights=_prelu_weights, plan=_plan_prelu, inplace=True)
def prelu(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """max(x, 0) + slope[channel] * min(x, 0), one slope for all if channel_shared.

    Source: Caffe's PReLULayer; channels are axis 1.
    """
    images = bottoms[0]
    sloped = images * _slopes(weights[0], images.ndim)
    return [namespace(images).where(images > 0, images, sloped)]


def _crelu_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    axis = axis_index(1, len(bottoms[0]))
    return [(*bottoms[0][:axis], 2 * bottoms[0][axis], *bottoms[0][axis + 1 :])]


@layer("CReLU", shape=_crelu_shape)
def crelu(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """max(x, 0), then max(-x, 0), joined along the channels. Source: arXiv 1603.05201."""
    x, xp = bottoms[0], namespace(bottoms[0])
    return [xp.concatenate([xp.maximum(x, 0), xp.maximum(-x, 0)], axis=1)]


def _softmax_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    axis_index(params.softmax_param.axis, len(bottoms[0]))
    return [bottoms[0]]


@layer("Softmax", shape=_softmax_shape)
def softmax(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """exp(x - max) / sum of the same, over `axis` (1 by default). Source: Caffe's SoftmaxLayer."""
    axis = axis_index(params.softmax_param.axis, bottoms[0].ndim)
    top = namespace(bottoms[0]).exp(bottoms[0] - bottoms[0].max(axis=axis, keepdims=True))
    top /= top.sum(axis=axis, keepdims=True)
    return [top]
