"""Normalization: by stored statistics, by those of the blob itself, or of a neighborhood (LRN)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.affine import along
from int8calib.caffe.layers.pooling import window_counts
from int8calib.caffe.layers.registry import FastPath, Scratch, copying_fast_path, layer
from int8calib.caffe.layers.shapes import need_ndim, same_shape
from int8calib.caffe.layers.windows import Windows
from int8calib.errors import ShapeError

_INFERENCE = caffe_pb2.BNParameter.INFERENCE
_ACROSS = caffe_pb2.LRNParameter.ACROSS_CHANNELS

CHUNK = 1 << 17
"""Floats of scratch memory in use at a time (512 KiB), so that it stays in the cache."""


def _batch_norm_weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    channels = bottoms[0][1] if len(bottoms[0]) > 1 else 1
    return [(channels,), (channels,), (1,)]


def stored_statistics(params: LayerParameter, weights: Sequence[Array]) -> tuple[Array, Array]:
    """Work out a BatchNorm's mean and deviation from its blobs.

    Parameters
    ----------
    params
        The BatchNorm layer.
    weights
        Its blobs: mean (C,), variance (C,), and the factor (1,) both are divided by, where 1 / 0
        counts as 0.

    Returns
    -------
    tuple of arrays
        The mean and the deviation sqrt(var + eps) of each channel, both float32 (C,). With
        `add_eps_before_sqrt: false` the deviation is sqrt(var) + eps.

    Notes
    -----
    Source: Caffe's BatchNormLayer with use_global_stats, and that of the Synopsys fork.
    """
    param = params.batch_norm_param
    mean, var, moving = (blob.reshape(-1) for blob in weights[:3])
    # Without a branch, for which a device would have to hand out the value.
    inverse = (moving[:1] != 0) / (moving[:1] + (moving[:1] == 0))
    return mean * inverse, _deviation(var * inverse, param.eps, param.add_eps_before_sqrt)


def _deviation(square: Array, eps: float, before_sqrt: bool) -> Array:
    """sqrt(square + eps), or sqrt(square) + eps."""
    inner, outer = (eps, 0.0) if before_sqrt else (0.0, eps)
    root: Array = namespace(square).sqrt(square + np.float32(inner))
    deviation: Array = root + np.float32(outer)
    return deviation


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
    x, xp = bottoms[0], namespace(bottoms[0])
    factor, shift, *stored = (along(blob.reshape(-1), 1, x.ndim) for blob in weights)
    if stored:
        mean, eps = stored[0], np.float32(params.bn_param.eps)
        var = stored[1]
    elif params.bn_param.bn_mode == _INFERENCE:
        return [x * factor + shift]
    else:
        axes = (0, *range(2, x.ndim))
        mean, eps = x.mean(axis=axes, keepdims=True), np.float32(1e-9)
        var = xp.square(x - mean).mean(axis=axes, keepdims=True)
    return [(x - mean) / xp.sqrt(var + eps) * factor + shift]


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
        variance = namespace(top).square(top).mean(axis=axes, keepdims=True)
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
    total = namespace(x).square(x).sum(axis=axes, keepdims=True)
    norm = _deviation(total, param.eps, param.add_eps_before_sqrt or not param.across_spatial)
    return [x / norm * weights[0].reshape(-1, 1, 1)]


def _lrn_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_ndim(bottoms, 4)
    if params.lrn_param.local_size % 2 == 0:
        raise ShapeError(f"local_size {params.lrn_param.local_size} is even; it must be odd")
    return [bottoms[0]]


def _plan_lrn(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    """Across channels: some pixels of all channels at a time, so that they stay in the cache."""
    param, (_, channels, height, width) = params.lrn_param, bottoms[0]
    if param.norm_region != _ACROSS:
        return copying_fast_path(lrn, params, weights)
    half, pixels = _reach(param.local_size, channels), height * width
    chunk = max(1, min(pixels, CHUNK // (3 * channels)))
    squares = scratch((channels + 2 * half, chunk))
    total = scratch((channels, chunk))
    root = scratch((channels, chunk))
    alpha = np.float32(param.alpha / param.local_size)

    def run_chunk(image: Array, top: Array) -> None:
        count = image.shape[1]
        window, base, power = squares[:, :count], total[:, :count], root[:, :count]
        np.square(image, out=window[half : half + channels])
        np.copyto(base, window[:channels])
        for i in range(1, 2 * half + 1):
            np.add(base, window[i : i + channels], out=base)
        np.multiply(base, alpha, out=base)
        np.add(base, np.float32(param.k), out=base)
        _power(base, param.beta, power)
        np.divide(image, base, out=top)

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        squares[:half] = 0
        squares[half + channels :] = 0
        for image, top in zip(images[0], tops[0], strict=True):
            source, target = image.reshape(channels, pixels), top.reshape(channels, pixels)
            for first in range(0, pixels, chunk):
                last = first + chunk
                run_chunk(source[:, first:last], target[:, first:last])

    return run


@layer("LRN", shape=_lrn_shape, plan=_plan_lrn)
def lrn(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """x / (k + alpha * mean of squares)^beta over a window of channels or of pixels.

    Source: Caffe's LRNLayer. ACROSS_CHANNELS divides the sum of squares by local_size always;
    WITHIN_CHANNEL averages over local_size x local_size pixels as AVE pooling with padding does,
    and takes 1 for k.
    """
    param = params.lrn_param
    squares = namespace(bottoms[0]).square(bottoms[0])
    if param.norm_region == _ACROSS:
        base, mean = np.float32(param.k), _mean_across(squares, param.local_size)
    else:
        base, mean = np.float32(1), _mean_within(squares, param.local_size)
    mean *= np.float32(param.alpha)
    mean += base
    return [bottoms[0] / mean ** np.float32(param.beta)]


def _power(base: Array, exponent: float, spare: Array) -> None:
    """base ** exponent in place, by roots for the usual 0.75: ten times faster than a power."""
    if exponent == 0.75:
        np.sqrt(base, out=base)
        np.sqrt(base, out=spare)
        np.multiply(base, spare, out=base)
    else:
        np.power(base, np.float32(exponent), out=base)


def _reach(size: int, length: int) -> int:
    """How far a centered window of `size` reaches at each side among `length` entries."""
    return min(size // 2, length - 1)


def _mean_across(images: Array, size: int) -> Array:
    """The sum over a centered window of `size` channels, divided by `size`."""
    channels = images.shape[1]
    half = _reach(size, channels)
    padded = namespace(images).pad(images, ((0, 0), (half, half), (0, 0), (0, 0)))
    total: Array = padded[:, :channels].copy()
    for i in range(1, 2 * half + 1):
        total += padded[:, i : i + channels]
    total /= np.float32(size)
    return total


def _mean_within(images: Array, size: int) -> Array:
    """AVE pooling of a centered size x size window, stride 1."""
    height, width = images.shape[2:]
    down, across = _reach(size, height), _reach(size, width)
    xp = namespace(images)
    padded = xp.pad(images, ((0, 0), (0, 0), (down, down), (across, across)))
    rows = padded[:, :, :height].copy()
    for i in range(1, 2 * down + 1):
        rows += padded[:, :, i : i + height]
    total: Array = rows[..., :width].copy()
    for j in range(1, 2 * across + 1):
        total += rows[..., j : j + width]
    pad = (size // 2, size // 2)
    windows = Windows((size, size), pad_begin=pad, pad_end=pad)
    total /= xp.asarray(window_counts(windows, (height, width), height, width))
    return total
