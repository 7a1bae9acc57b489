"""Pooling in ncnn's own ways: tails padded, SAME padding, adaptive windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.windows import Windows, window_view
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.limits import check_shape
from int8calib.ncnn.translate.layers.registry import ncnn_layer
from int8calib.ncnn.translate.options import Options

MAX, AVERAGE = 0, 1
FULL, VALID, SAME_UPPER, SAME_LOWER = 0, 1, 2, 3
"""The ways of `pad_mode`."""
_KEEP = -233
_LOWEST = np.finfo(np.float32).min


def same_padding(
    size: Sequence[int], extent: Sequence[int], stride: Sequence[int], *, upper: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding before and behind an image so that there is a window for each stride.

    Parameters
    ----------
    size, extent, stride
        The image's, the window's, and from one window to the next: (vertical, horizontal).
    upper
        Whether the odd pixel goes behind the image.

    Returns
    -------
    tuple
        What is above and left, what is below and right.

    Notes
    -----
    Source: make_padding in ncnn's convolution.cpp and pooling.cpp.
    """
    whole = [
        max(window + (length - 1) // step * step - length, 0)
        for length, window, step in zip(size, extent, stride, strict=True)
    ]
    less, more = [pad // 2 for pad in whole], [pad - pad // 2 for pad in whole]
    begin, end = (less, more) if upper else (more, less)
    return (begin[0], begin[1]), (end[0], end[1])


def _windows(options: Options, size: tuple[int, int]) -> Windows:
    """The windows with all padding, that of a tail included."""
    kernel, stride = (
        (options.integer(f"{name}_h"), options.integer(f"{name}_w"))
        for name in ("kernel", "stride")
    )
    if min(*kernel, *stride) < 1:
        raise ShapeError(f"kernel {kernel} and stride {stride} must be at least 1")
    mode = options.integer("pad_mode")
    if mode in (SAME_UPPER, SAME_LOWER):
        begin, end = same_padding(size, kernel, stride, upper=mode == SAME_UPPER)
        return Windows(kernel, stride, begin, end)
    begin, end = _given_padding(options)
    if mode == FULL:
        tails = [
            -(length + first + last - taps) % step
            for length, first, last, taps, step in zip(
                size, begin, end, kernel, stride, strict=True
            )
        ]
        end = (end[0] + tails[0], end[1] + tails[1])
    elif mode != VALID:
        raise UnsupportedLayerError(f"pad_mode {mode} is not supported")
    if min(*begin, *end) < 0:
        raise ShapeError(f"padding {begin} and {end} must not be negative")
    return Windows(kernel, stride, begin, end)


def _given_padding(options: Options) -> tuple[tuple[int, int], tuple[int, int]]:
    return (
        (options.integer("pad_top"), options.integer("pad_left")),
        (options.integer("pad_bottom"), options.integer("pad_right")),
    )


def _adaptive_size(options: Options, size: tuple[int, int]) -> tuple[int, int]:
    given = options.integer("out_h"), options.integer("out_w")
    rows, columns = (old if new == _KEEP else new for old, new in zip(size, given, strict=True))
    return rows, columns


def _pooling_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    if len(bottoms[0]) != 4 or options.integer("pooling_type") not in (MAX, AVERAGE):
        raise UnsupportedLayerError(
            f"pooling_type {options.integer('pooling_type')} of a bottom {bottoms[0]} is not "
            "supported"
        )
    size = (bottoms[0][2], bottoms[0][3])
    if options.integer("adaptive_pooling"):
        top = _adaptive_size(options, size)
        if min(top) < 1:
            raise ShapeError(f"an adaptive size of {top} is none")
    else:
        windows = _windows(options, size)
        check_shape((*bottoms[0][:2], *windows.padded_size(*size)), "the padded bottom")
        top = windows.output_size(*size)
        average = options.integer("pooling_type") == AVERAGE
        if average and (_counts(options, windows, size) < 1).any():
            raise ShapeError(
                f"kernel {windows.kernel} and stride {windows.stride} on a bottom {bottoms[0]} "
                "leave a last window without any pixel, whose mean is 0 / 0"
            )
    return [(*bottoms[0][:2], *top)]


@ncnn_layer("Pooling", shape=_pooling_shape)
def pooling(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The maximum or mean of windows; the mean counts padding with `avgpool_count_include_pad`.

    Where it does not, the padding of SAME counts all the same, as in ncnn. Adaptive windows go
    from floor(i * size / count) to ceil((i + 1) * size / count). Source: ncnn's pooling.cpp.
    """
    x, xp = bottoms[0], namespace(bottoms[0])
    size, maximum = (x.shape[2], x.shape[3]), options.integer("pooling_type") == MAX
    if options.integer("adaptive_pooling"):
        reduce: Callable[..., Array] = xp.max if maximum else xp.mean
        rows, columns = _adaptive_size(options, size)
        return [_adaptive(_adaptive(x, 2, rows, reduce), 3, columns, reduce)]
    windows = _windows(options, size)
    (above, left), (below, right) = windows.pad_begin, windows.pad_end
    padded = xp.pad(
        x,
        ((0, 0), (0, 0), (above, below), (left, right)),
        constant_values=_LOWEST if maximum else 0,
    )
    view = window_view(padded, windows, windows.output_size(*size))
    if maximum:
        return [view.max(axis=(2, 3))]
    counts = xp.asarray(_counts(options, windows, size))
    return [xp.asarray(view.sum(axis=(2, 3)) / counts, np.float32)]


def _counts(options: Options, windows: Windows, size: tuple[int, int]) -> Array:
    """What the sum of each window is divided by, (rows, columns)."""
    tops = windows.output_size(*size)
    if options.integer("avgpool_count_include_pad"):
        return np.full(tops, windows.kernel[0] * windows.kernel[1], np.float32)
    if options.integer("pad_mode") in (SAME_UPPER, SAME_LOWER):
        begin, end = _given_padding(options)
    else:
        begin, end = windows.pad_begin, windows.pad_end
    counts = []
    for count, kernel, stride, padded, first, last in zip(
        tops, windows.kernel, windows.stride, windows.padded_size(*size), begin, end, strict=True
    ):
        starts = np.arange(count) * stride
        stops = np.minimum(starts + kernel, padded - last)
        counts.append(np.maximum(stops - np.maximum(starts, first), 0))
    return np.asarray(np.outer(*counts), np.float32)


def _adaptive(x: Array, axis: int, count: int, reduce: Callable[..., Array]) -> Array:
    """One axis reduced to `count` entries."""
    length = x.shape[axis]
    parts = []
    for i in range(count):
        part = [slice(None)] * x.ndim
        part[axis] = slice(i * length // count, -(-(i + 1) * length // count))
        parts.append(reduce(x[tuple(part)], axis=axis))
    xp = namespace(x)
    top: Array = xp.ascontiguousarray(xp.stack(parts, axis=axis), np.float32)
    return top
