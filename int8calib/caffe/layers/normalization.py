"""Normalization by stored or by the blob's own statistics: BatchNorm, BN, MVN and Normalize."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.affine import along
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import need_ndim, same_shape

_INFERENCE = caffe_pb2.BNParameter.INFERENCE


def _batch_norm_weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    channels = bottoms[0][1] if len(bottoms[0]) > 1 else 1
    return [(channels,), (channels,), (1,)]


def stored_statistics(params: LayerParameter, weights: Sequence[Array]) -> tuple[Array, Array]:
    """The mean and the deviation sqrt(var + eps) of each channel: both float32 (C,).

    Mean and variance are divided by the third blob; 1 / 0 counts as 0. With
    `add_eps_before_sqrt: false` the deviation is sqrt(var) + eps. Source: Caffe's BatchNormLayer
    with use_global_stats, and that of the Synopsys fork.
    """
    param = params.batch_norm_param
    mean, var, moving = (blob.reshape(-1) for blob in weights[:3])
    inverse = np.float32(0 if moving[0] == 0 else 1 / moving[0])
    return mean * inverse, _deviation(var * inverse, param.eps, param.add_eps_before_sqrt)


def _deviation(square: Array, eps: float, before_sqrt: bool) -> Array:
    """sqrt(square + eps), or sqrt(square) + eps."""
    if before_sqrt:
        return np.sqrt(square + np.float32(eps))
    return np.sqrt(square) + np.float32(eps)


def _plan_batch_norm(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    # Not x * factor + offset: where the mean is large that loses digits.
    mean, deviation = stored_statistics(params, weights)
    ndim = len(bottoms[0])
    mean, factor = along(mean, 1, ndim), along(np.float32(1) / deviation, 1, ndim)

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        np.subtract(images[0], mean, out=tops[0])
        np.multiply(tops[0], factor, out=tops[0])

    return run


@layer(
    "BatchNorm",
    shape=same_shape,
    weights=_batch_norm_weights,
    plan=_plan_batch_norm,
    inplace=True,
)
def batch_norm(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """(x - mean) / sqrt(var + eps) per channel, see `stored_statistics`.

    Source: Caffe's BatchNormLayer in the TEST phase; blobs mean (C,), variance (C,), and the
    factor (1,) both are divided by (0 makes both 0). The stored statistics are used even where
    the prototxt, written for training, says `use_global_stats: false`: so does ncnn.
    """
    images = bottoms[0]
    mean, deviation = stored_statistics(params, weights)
    return [(images - along(mean, 1, images.ndim)) / along(deviation, 1, images.ndim)]


def _bn_weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    """Scale and shift; the mean and variance of the forks that store them come on top."""
    return [(bottoms[0][1],), (bottoms[0][1],)]


@layer("BN", shape=same_shape, weights=_bn_weights)
def bn(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """(x - mean) / sqrt(var + eps) * scale + shift per channel.

    Two forks share the name. PSPNet's stores four blobs, scale, shift, mean and variance (each
    C values), `eps` 1e-5 by default. SegNet's stores scale and shift: with `bn_mode: INFERENCE`
    the statistics are folded in already and nothing is normalized; otherwise they are those of
    the batch itself, eps 1e-9. Sources: BNLayer of yjxiong/caffe and alexgkendall/caffe-segnet.
    """
    x = bottoms[0]
    factor, shift, *stored = (along(blob.reshape(-1), 1, x.ndim) for blob in weights)
    if stored:
        mean, eps = stored[0], np.float32(params.bn_param.eps)
        var = stored[1]
    elif params.bn_param.bn_mode == _INFERENCE:
        return [x * factor + shift]
    else:
        axes = (0, *range(2, x.ndim))
        mean, eps = x.mean(axis=axes, keepdims=True), np.float32(1e-9)
        var = np.square(x - mean).mean(axis=axes, keepdims=True)
    return [(x - mean) / np.sqrt(var + eps) * factor + shift]


@layer("MVN", shape=same_shape)
def mvn(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """(x - mean) / (sqrt(var) + eps), of each channel or, `across_channels`, of each image.

    Without `normalize_variance` only the mean is taken off. Source: Caffe's MVNLayer; note that
    eps is added to the deviation, not to the variance, unless `add_eps_before_sqrt` (Synopsys).
    """
    param, x = params.mvn_param, bottoms[0]
    axes = tuple(range(1 if param.across_channels else 2, x.ndim))
    top = x - x.mean(axis=axes, keepdims=True)
    if param.normalize_variance:
        variance = np.square(top).mean(axis=axes, keepdims=True)
        top /= _deviation(variance, param.eps, param.add_eps_before_sqrt)
    return [top]


def _normalize_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_ndim(bottoms, 4)
    return [bottoms[0]]


def _normalize_weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return [() if params.norm_param.channel_shared else (bottoms[0][1],)]


@layer("Normalize", shape=_normalize_shape, weights=_normalize_weights)
def normalize(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """x / sqrt(sum of squares + eps) * scale[channel], one scale for all if `channel_shared`.

    The sum is over the channels at each pixel or, `across_spatial`, over the whole image, where
    `add_eps_before_sqrt: false` adds eps to the square root instead. Sources: NormalizeLayer of
    the SSD fork and of the Synopsys fork.
    """
    param, x = params.norm_param, bottoms[0]
    axes = (1, 2, 3) if param.across_spatial else (1,)
    total = np.square(x).sum(axis=axes, keepdims=True)
    norm = _deviation(total, param.eps, param.add_eps_before_sqrt or not param.across_spatial)
    return [x / norm * weights[0].reshape(-1, 1, 1)]
