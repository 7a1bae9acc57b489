"""LRN: images divided by the energy of their neighborhood, among channels or among pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.pooling import window_counts
from int8calib.caffe.layers.registry import FastPath, Scratch, copying_fast_path, layer
from int8calib.caffe.layers.shapes import need_ndim
from int8calib.caffe.layers.windows import Windows
from int8calib.errors import ShapeError

CHUNK = 1 << 17
"""Floats of scratch memory in use at a time (512 KiB), so that it stays in the cache."""


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_ndim(bottoms, 4)
    if params.lrn_param.local_size % 2 == 0:
        raise ShapeError(f"local_size {params.lrn_param.local_size} is even; it must be odd")
    return [bottoms[0]]


def _plan(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    """Across channels: some pixels of all channels at a time, so that they stay in the cache."""
    param, (_, channels, height, width) = params.lrn_param, bottoms[0]
    if param.norm_region != caffe_pb2.LRNParameter.ACROSS_CHANNELS:
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


@layer("LRN", shape=_shape, plan=_plan)
def lrn(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """x / (k + alpha * mean of squares)^beta over a window of channels or of pixels.

    Source: Caffe's LRNLayer. ACROSS_CHANNELS divides the sum of squares by local_size always;
    WITHIN_CHANNEL averages over local_size x local_size pixels as AVE pooling with padding does,
    and takes 1 for k.
    """
    param = params.lrn_param
    squares = np.square(bottoms[0])
    if param.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS:
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
    padded = np.pad(images, ((0, 0), (half, half), (0, 0), (0, 0)))
    total: Array = padded[:, :channels].copy()
    for i in range(1, 2 * half + 1):
        total += padded[:, i : i + channels]
    total /= np.float32(size)
    return total


def _mean_within(images: Array, size: int) -> Array:
    """AVE pooling of a centered size x size window, stride 1."""
    height, width = images.shape[2:]
    down, across = _reach(size, height), _reach(size, width)
    padded = np.pad(images, ((0, 0), (0, 0), (down, down), (across, across)))
    rows = padded[:, :, :height].copy()
    for i in range(1, 2 * down + 1):
        rows += padded[:, :, i : i + height]
    total: Array = rows[..., :width].copy()
    for j in range(1, 2 * across + 1):
        total += rows[..., j : j + width]
    pad = (size // 2, size // 2)
    windows = Windows((size, size), pad_begin=pad, pad_end=pad)
    total /= window_counts(windows, (height, width), height, width)
    return total
