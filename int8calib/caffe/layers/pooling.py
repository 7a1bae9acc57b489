"""Pooling: the maximum or mean over windows of images (N, C, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.pooling_kernels import plan_global, plan_windows
from int8calib.caffe.layers.registry import FastPath, Scratch, copying_fast_path, layer
from int8calib.caffe.layers.shapes import need_ndim
from int8calib.caffe.layers.windows import Windows, window_view
from int8calib.errors import ShapeError

_MAX, _AVE = caffe_pb2.PoolingParameter.MAX, caffe_pb2.PoolingParameter.AVE
# Caffe starts its search for the maximum here; a window without any pixel keeps it.
_LOWEST = np.finfo(np.float32).min


def pooling_windows(params: LayerParameter, height: int, width: int) -> Windows:
    """The windows over an image of that size; `global_pooling` makes one window of it."""
    param = params.pooling_param
    if param.pool not in (_MAX, _AVE):
        raise ShapeError("pool is STOCHASTIC; only MAX and AVE are supported")
    if param.global_pooling:
        return Windows((height, width))
    windows = Windows(
        kernel=(param.kernel_h or param.kernel_size, param.kernel_w or param.kernel_size),
        stride=(param.stride_h or param.stride, param.stride_w or param.stride),
        pad=(param.pad_h or param.pad, param.pad_w or param.pad),
    )
    if min(*windows.kernel, *windows.stride) < 1:
        raise ShapeError(f"kernel {windows.kernel} and stride {windows.stride} must be at least 1")
    if windows.pad[0] >= windows.kernel[0] or windows.pad[1] >= windows.kernel[1]:
        raise ShapeError(f"pad {windows.pad} must be smaller than kernel {windows.kernel}")
    return windows


def pooled_size(
    windows: Windows, height: int, width: int, *, floor: bool = False
) -> tuple[int, int]:
    """Rounded up unless `floor`, less a last window that would start in the far padding."""
    sizes = []
    for length, kernel, stride, pad in zip(
        (height, width), windows.kernel, windows.stride, windows.pad, strict=True
    ):
        room = length + 2 * pad - kernel
        if room < 0 and floor:
            raise ShapeError(f"a {height}x{width} bottom is smaller than kernel {windows.kernel}")
        size = (room if floor else room + stride - 1) // stride + 1
        if any(windows.pad) and (size - 1) * stride >= length + pad:
            size -= 1
        sizes.append(max(size, 1))
    return sizes[0], sizes[1]


def _geometry(params: LayerParameter, shape: Shape) -> tuple[Windows, tuple[int, int]]:
    windows = pooling_windows(params, *shape[2:])
    param = params.pooling_param
    floor = param.round_mode == caffe_pb2.PoolingParameter.FLOOR or not param.ceil_mode
    return windows, pooled_size(windows, *shape[2:], floor=floor)


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_ndim(bottoms, 4)
    masked = len(params.top) > 1
    if masked and (params.pooling_param.pool != _MAX or len(params.top) > 2):
        raise ShapeError("a second top, the mask of the maxima, goes with pool: MAX only")
    shape = (*bottoms[0][:2], *_geometry(params, bottoms[0])[1])
    return [shape, shape] if masked else [shape]


def window_counts(windows: Windows, size: tuple[int, int], height: int, width: int) -> Array:
    """Pixels in each window clipped to the padded image, as AVE divides by: (out_h, out_w)."""
    lengths = []
    for count, length, kernel, stride, pad in zip(
        size, (height, width), windows.kernel, windows.stride, windows.pad, strict=True
    ):
        starts = np.arange(count) * stride - pad
        lengths.append(np.minimum(starts + kernel, length + pad) - starts)
    return np.outer(*lengths).astype(np.float32)


def _padded_shape(windows: Windows, size: tuple[int, int], shape: Shape) -> Shape:
    """Room for images, their padding and what the last window hangs over."""
    n, channels = shape[:2]
    lengths = [
        max((count - 1) * stride + kernel, length + pad)
        for count, stride, kernel, length, pad in zip(
            size, windows.stride, windows.kernel, shape[2:], windows.pad, strict=True
        )
    ]
    return (n, channels, *lengths)


def _plan(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    shape = bottoms[0]
    windows, size = _geometry(params, shape)
    maximum = params.pooling_param.pool == _MAX
    if len(params.top) > 1:
        return copying_fast_path(pooling, params, weights)
    if size == (1, 1) and windows.pad == (0, 0) and windows.kernel == shape[2:]:
        return plan_global(maximum)
    room = _padded_shape(windows, size, shape)[2:]
    lowest = np.float32(_LOWEST if maximum else 0)
    counts = None if maximum else window_counts(windows, size, *shape[2:])
    return plan_windows(windows, size, room, shape, lowest, counts, scratch)


@layer("Pooling", shape=_shape, plan=_plan)
def pooling(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """MAX: the largest pixel of a window; AVE: its sum over its size clipped to the padded image.

    Source: Caffe's PoolingLayer. Sizes round up unless `round_mode: FLOOR` (some
    converters write `ceil_mode: false`). A second top holds
    where each maximum was found, y * W + x in its plane as float32, the first of equal ones.
    """
    images = bottoms[0]
    height, width = images.shape[2:]
    windows, size = _geometry(params, images.shape)
    maximum = params.pooling_param.pool == _MAX
    room = _padded_shape(windows, size, images.shape)
    padded = np.full(room, _LOWEST if maximum else 0, np.float32)
    top, left = windows.pad
    padded[:, :, top : top + height, left : left + width] = images
    view = window_view(padded, windows, size)
    if len(params.top) > 1:
        return _maxima_and_mask(view, windows, width)
    if maximum:
        return [view.max(axis=(2, 3))]
    return [view.sum(axis=(2, 3)) / window_counts(windows, size, height, width)]


def _maxima_and_mask(view: Array, windows: Windows, width: int) -> list[Array]:
    """The maxima of a window view (N, C, kernel_h, kernel_w, out_h, out_w), and their places."""
    n, channels, _, _, *size = view.shape
    values = view.reshape(n, channels, -1, *size)
    tap = values.argmax(axis=2)
    maxima = np.take_along_axis(values, tap[:, :, None], axis=2)[:, :, 0]
    rows, columns = (
        np.arange(count) * stride - pad
        for count, stride, pad in zip(size, windows.stride, windows.pad, strict=True)
    )
    rows = rows[:, None] + tap // windows.kernel[1]
    mask = rows * width + columns + tap % windows.kernel[1]
    return [np.ascontiguousarray(maxima), mask.astype(np.float32)]
