"""Pooling: the maximum or mean over windows of images (N, C, H, W).

The fast path combines rows first, then along the rows, in chunks that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.registry import FastPath, Scratch, copying_fast_path, layer
from int8calib.caffe.layers.shapes import need_ndim
from int8calib.caffe.layers.windows import Windows, padding, pair, window_view
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.limits import check_shape

_Pooling = caffe_pb2.PoolingParameter
METHODS = (_Pooling.MAX, _Pooling.AVE, _Pooling.AVE_EXC_PAD)
"""The values of `pool` that run."""

# Caffe starts its search for the maximum here; a window without any pixel keeps it.
_LOWEST = np.finfo(np.float32).min

CHUNK = 1 << 17
"""Floats of scratch memory in use at a time (512 KiB), so that it stays in the cache."""


def _given(param: Any, name: str) -> list[int]:
    """The value of a field, if it is there."""
    return [getattr(param, name)] if param.HasField(name) else []


def pooling_windows(params: LayerParameter, height: int, width: int) -> Windows:
    """Read the geometry of a Pooling layer.

    Parameters
    ----------
    params
        The layer.
    height, width
        The size of its bottom, of which `global_pooling` makes one window.

    Returns
    -------
    Windows
        As the layer gives them.

    Raises
    ------
    ShapeError
        For sizes of no meaning, and for a method other than `METHODS`.
    """
    param = params.pooling_param
    if param.pool not in METHODS:
        names = ", ".join(_Pooling.PoolMethod.Name(method) for method in METHODS)
        raise ShapeError(
            f"pool is {_Pooling.PoolMethod.Name(param.pool)}; only {names} are supported"
        )
    if param.global_pooling:
        return Windows((height, width))
    pad = pair("pad", _given(param, "pad"), param.pad_h, param.pad_w, 0)
    begin, end = padding(param, pad)
    windows = Windows(
        kernel=pair("kernel_size", _given(param, "kernel_size"), param.kernel_h, param.kernel_w, 0),
        stride=pair("stride", _given(param, "stride"), param.stride_h, param.stride_w, 1),
        pad_begin=begin,
        pad_end=end,
    )
    if min(*windows.kernel, *windows.stride) < 1:
        raise ShapeError(f"kernel {windows.kernel} and stride {windows.stride} must be at least 1")
    if begin[0] >= windows.kernel[0] or begin[1] >= windows.kernel[1]:
        raise ShapeError(f"pad {begin} must be smaller than kernel {windows.kernel}")
    return windows


def pooled_size(
    windows: Windows, height: int, width: int, *, floor: bool = False
) -> tuple[int, int]:
    """Count the windows over an image.

    Parameters
    ----------
    windows
        The geometry.
    height, width
        The size of the image.
    floor
        Whether to round down; Caffe rounds up, but leaves out a last window that would start in
        the far padding.

    Returns
    -------
    tuple of int
        (out_h, out_w).

    Raises
    ------
    ShapeError
        Where not one window fits.
    """
    sizes = []
    for length, padded, begin, kernel, stride in zip(
        (height, width),
        windows.padded_size(height, width),
        windows.pad_begin,
        windows.kernel,
        windows.stride,
        strict=True,
    ):
        room = padded - kernel
        size = (room if floor else room + stride - 1) // stride + 1
        if windows.padded and (size - 1) * stride >= length + begin:
            size -= 1
        if size < 1:
            raise ShapeError(f"a {height}x{width} bottom is smaller than kernel {windows.kernel}")
        sizes.append(size)
    return sizes[0], sizes[1]


def _geometry(params: LayerParameter, shape: Shape) -> tuple[Windows, tuple[int, int]]:
    """The windows and how many there are: (out_h, out_w).

    What lies beyond the padded image is cut off kernels, and strides do not lead further than
    just behind it; no result changes, and options alone cannot ask for much memory.
    """
    param = params.pooling_param
    windows = pooling_windows(params, *shape[2:])
    floor = param.round_mode == _Pooling.FLOOR or not param.ceil_mode or param.round_below
    size = pooled_size(windows, *shape[2:], floor=floor)
    padded = windows.padded_size(*shape[2:])
    check_shape((*shape[:2], *padded), "the padded bottom")
    clipped = replace(
        windows,
        kernel=(min(windows.kernel[0], padded[0]), min(windows.kernel[1], padded[1])),
        stride=(min(windows.stride[0], padded[0] + 1), min(windows.stride[1], padded[1] + 1)),
    )
    starts = [(count - 1) * stride for count, stride in zip(size, clipped.stride, strict=True)]
    empty = any(start == length for start, length in zip(starts, shape[2:], strict=True))
    if param.pool != _Pooling.MAX and empty and not windows.padded:
        raise ShapeError(
            f"kernel {windows.kernel} and stride {windows.stride} on a {shape[2]}x{shape[3]} "
            "bottom leave a last window without any pixel, whose mean is 0 / 0"
        )
    return clipped, size


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    if len(bottoms[0]) == 5:
        raise UnsupportedLayerError(f"bottom has shape {bottoms[0]}: 3-d pooling is not supported")
    need_ndim(bottoms, 4)
    masked = len(params.top) > 1
    if masked and (params.pooling_param.pool != _Pooling.MAX or len(params.top) > 2):
        raise ShapeError("a second top, the mask of the maxima, goes with pool: MAX only")
    shape = (*bottoms[0][:2], *_geometry(params, bottoms[0])[1])
    return [shape, shape] if masked else [shape]


def window_counts(
    windows: Windows, size: tuple[int, int], height: int, width: int, *, inside: bool = False
) -> Array:
    """Count the pixels that the sum over each window is divided by.

    Parameters
    ----------
    windows
        The geometry.
    size
        How many windows there are, (out_h, out_w).
    height, width
        The size of the image.
    inside
        Count the pixels of the image only, as AVE_EXC_PAD; otherwise those of the padded image,
        as AVE.

    Returns
    -------
    float32 array
        (out_h, out_w).
    """
    counts = []
    for count, length, kernel, stride, begin, end in zip(
        size,
        (height, width),
        windows.kernel,
        windows.stride,
        windows.pad_begin,
        windows.pad_end,
        strict=True,
    ):
        starts = np.arange(count) * stride - begin
        stops = np.minimum(starts + kernel, length if inside else length + end)
        counts.append((stops - (np.maximum(starts, 0) if inside else starts)).astype(np.float64))
    rows, columns = counts
    return np.asarray(np.outer(rows, columns), np.float32)


def _counts(params: LayerParameter, windows: Windows, size: tuple[int, int], shape: Shape) -> Array:
    inside = params.pooling_param.pool == _Pooling.AVE_EXC_PAD
    return window_counts(windows, size, *shape[2:], inside=inside)


def _room(windows: Windows, size: tuple[int, int], shape: Shape) -> tuple[int, int]:
    """Height and width of an image with its padding and what the last window hangs over."""
    height, width = (
        max((count - 1) * stride + kernel, length + begin)
        for count, stride, kernel, length, begin in zip(
            size, windows.stride, windows.kernel, shape[2:], windows.pad_begin, strict=True
        )
    )
    return height, width


def _plan(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    shape = bottoms[0]
    windows, size = _geometry(params, shape)
    maximum = params.pooling_param.pool == _Pooling.MAX
    if len(params.top) > 1:
        return copying_fast_path(pooling, params, weights)
    if size == (1, 1) and not windows.padded and windows.kernel == shape[2:]:
        return _plan_whole_image(maximum)
    counts = None if maximum else _counts(params, windows, size, shape)
    return _plan_windows(windows, size, shape, counts, scratch)


@layer("Pooling", shape=_shape, plan=_plan)
def pooling(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """MAX: the largest pixel of a window; AVE and AVE_EXC_PAD (AVE_TF): the mean of its pixels.

    AVE divides by the window's size clipped to the padded image, AVE_EXC_PAD by the number of
    pixels inside the image. Sizes round up unless `round_mode: FLOOR` (converters and forks also
    write `ceil_mode: false` or `round_below: true`). A second top holds where each maximum was
    found, y * W + x in its plane as float32, the first of equal ones. Sources: Caffe's
    PoolingLayer and that of the Synopsys fork.
    """
    images, xp = bottoms[0], namespace(bottoms[0])
    height, width = images.shape[2:]
    windows, size = _geometry(params, images.shape)
    maximum = params.pooling_param.pool == _Pooling.MAX
    room = _room(windows, size, images.shape)
    padded = xp.full((*images.shape[:2], *room), _LOWEST if maximum else 0, np.float32)
    above, left = windows.pad_begin
    padded[:, :, above : above + height, left : left + width] = images
    view = window_view(padded, windows, size)
    if len(params.top) > 1:
        return _maxima_and_mask(view, windows, width)
    if maximum:
        return [view.max(axis=(2, 3))]
    counts = xp.asarray(_counts(params, windows, size, images.shape))
    return [view.sum(axis=(2, 3)) / counts]


def _maxima_and_mask(view: Array, windows: Windows, width: int) -> list[Array]:
    """The maxima of a window view (N, C, kernel_h, kernel_w, out_h, out_w), and their places."""
    xp = namespace(view)
    n, channels, _, _, *size = view.shape
    values = view.reshape(n, channels, -1, *size)
    tap = values.argmax(axis=2)
    maxima = xp.take_along_axis(values, tap[:, :, None], axis=2)[:, :, 0]
    rows, columns = (
        xp.arange(count) * stride - begin
        for count, stride, begin in zip(size, windows.stride, windows.pad_begin, strict=True)
    )
    rows = rows[:, None] + tap // windows.kernel[1]
    mask = rows * width + columns + tap % windows.kernel[1]
    return [xp.ascontiguousarray(maxima), mask.astype(np.float32)]


def _plan_whole_image(maximum: bool) -> FastPath:
    """One window as large as the image."""

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        if maximum:
            np.max(images[0], axis=(2, 3), keepdims=True, out=tops[0])
        else:
            np.mean(images[0], axis=(2, 3), keepdims=True, out=tops[0])

    return run


def _plan_windows(
    windows: Windows, size: tuple[int, int], shape: Shape, counts: Array | None, scratch: Scratch
) -> FastPath:
    """Plan bottoms of `shape` (N, C, H, W) and tops of `size` (out_h, out_w).

    With `counts` None the maximum is taken, otherwise the sum over `counts` (out_h, out_w).

    A window is first narrowed to one row, for all columns; then each value is combined with the
    ones right of it, row after row as one long array, and the columns that start a window are
    picked. That does more arithmetic than needed (also from one row's end into the next), but
    all of it on contiguous values.
    """
    _, channels, height, width = shape
    room = _room(windows, size, shape)
    combine, lowest = (np.maximum, _LOWEST) if counts is None else (np.add, 0)
    above, left = windows.pad_begin
    is_padded = (height, width) != room
    chunk = max(1, min(channels, CHUNK // (room[0] * room[1] + 2 * size[0] * room[1])))
    padded = scratch((chunk, *room)) if is_padded else None
    narrowed = scratch((chunk, size[0], room[1]))
    combined = scratch((chunk, size[0], room[1]))
    starts = slice(0, (size[1] - 1) * windows.stride[1] + 1, windows.stride[1])

    def run_chunk(image: Array, top: Array) -> None:
        count = len(image)
        if padded is not None:
            padded.fill(lowest)
            padded[:count, above : above + height, left : left + width] = image
            image = padded[:count]
        rows, row_reach = narrowed[:count], (size[0] - 1) * windows.stride[0] + 1
        taps = [image[:, i : i + row_reach : windows.stride[0]] for i in range(windows.kernel[0])]
        _combine_all(combine, taps, rows)
        flat, reach = rows.reshape(-1), rows.size - windows.kernel[1] + 1
        neighbors = [flat[j : j + reach] for j in range(windows.kernel[1])]
        _combine_all(combine, neighbors, combined.reshape(-1)[:reach])
        picked = combined[:count, :, starts]
        if counts is None:
            np.copyto(top, picked)
        else:
            np.divide(picked, counts, out=top)

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        for image, top in zip(images[0], tops[0], strict=True):
            for first in range(0, channels, chunk):
                run_chunk(image[first : first + chunk], top[first : first + chunk])

    return run


def _combine_all(combine: np.ufunc, parts: Sequence[Array], out: Array) -> None:
    """out = parts[0] combined with parts[1], and so on."""
    if len(parts) == 1:
        np.copyto(out, parts[0])
        return
    combine(parts[0], parts[1], out=out)
    for part in parts[2:]:
        combine(out, part, out=out)
