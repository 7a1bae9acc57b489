"""Fast twins of convolution: geometry worked out once, results written into the engine's buffers.

Three forms, chosen by geometry: a matrix product on the images as they lie (1x1), multiply-adds
over flat images (depthwise, in its own file), and im2col with a matrix product (the rest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from int8calib.layers.depthwise_kernel import has_even_rows, plan_depthwise
from int8calib.layers.registry import Array, Kernel, Shape, Take
from int8calib.layers.windows import Windows


def plan_convolution(
    windows: Windows, group: int, weights: Sequence[Array], bottoms: Sequence[Shape], take: Take
) -> Kernel:
    """A kernel for bottoms of the given shapes (N, C, H, W); see `convolution` for the formula."""
    kernels = [_plan_one(windows, group, weights, shape, take) for shape in bottoms]

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        for kernel, bottom, top in zip(kernels, images, tops, strict=True):
            kernel([bottom], [top])

    return kernels[0] if len(kernels) == 1 else run


def _plan_one(
    windows: Windows, group: int, weights: Sequence[Array], shape: Shape, take: Take
) -> Kernel:
    if group == shape[1] == weights[0].shape[0] and has_even_rows(windows):
        return plan_depthwise(windows, weights, shape, take)
    if windows.pointwise and group == 1:
        return _plan_pointwise(weights)
    return _plan_im2col(windows, group, weights, shape, take)


@dataclass(frozen=True)
class _Tap:
    """One kernel position: which output pixels it reaches, and the input pixels they read.

    `target` and `source` index arrays (C, H, W); all channels are taken.
    """

    row: int
    column: int
    target: tuple[slice, slice, slice]
    source: tuple[slice, slice, slice]


def _taps(windows: Windows, height: int, width: int) -> list[_Tap]:
    """All kernel positions, each cut to the windows where it lies inside the image."""
    size = windows.output_size(height, width)
    taps = []
    for row in range(windows.kernel[0]):
        for column in range(windows.kernel[1]):
            spans = [
                _span(position * dilation - pad, stride, count, length)
                for position, dilation, pad, stride, count, length in zip(
                    (row, column),
                    windows.dilation,
                    windows.pad,
                    windows.stride,
                    size,
                    (height, width),
                    strict=True,
                )
            ]
            (target_rows, source_rows), (target_columns, source_columns) = spans
            everything = slice(None)
            taps.append(
                _Tap(
                    row,
                    column,
                    (everything, target_rows, target_columns),
                    (everything, source_rows, source_columns),
                )
            )
    return taps


def _span(offset: int, stride: int, count: int, length: int) -> tuple[slice, slice]:
    """Along one axis: outputs whose input `output * stride + offset` lies in 0..length-1."""
    first = max(0, -(offset // stride))
    last = min(count, (length - 1 - offset) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + offset
    return slice(first, last), slice(start, start + (last - first - 1) * stride + 1, stride)


def _plan_pointwise(weights: Sequence[Array]) -> Kernel:
    """1x1, stride 1: one matrix product per image, straight from its bottom."""
    rows = np.ascontiguousarray(weights[0].reshape(weights[0].shape[0], -1))
    bias = weights[1].reshape(-1, 1) if len(weights) > 1 else None

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for image, top in zip(bottoms[0], tops[0], strict=True):
            out = top.reshape(rows.shape[0], -1)
            np.matmul(rows, image.reshape(rows.shape[1], -1), out=out)
            if bias is not None:
                out += bias

    return run


def _plan_im2col(
    windows: Windows, group: int, weights: Sequence[Array], shape: Shape, take: Take
) -> Kernel:
    """The columns of all windows of one image, then one matrix product per group."""
    _, channels, height, width = shape
    size = windows.output_size(height, width)
    num_output = weights[0].shape[0]
    rows = np.ascontiguousarray(weights[0].reshape(group, num_output // group, -1))
    bias = weights[1].reshape(group, -1, 1) if len(weights) > 1 else None
    taps = _taps(windows, height, width)
    columns = take((channels, *windows.kernel, *size))
    matrix = columns.reshape(group, rows.shape[2], -1)

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for image, top in zip(bottoms[0], tops[0], strict=True):
            if windows.pad != (0, 0):
                columns.fill(0)
            for tap in taps:
                np.copyto(columns[:, tap.row, tap.column][tap.target], image[tap.source])
            out = top.reshape(group, rows.shape[1], -1)
            np.matmul(rows, matrix, out=out)
            if bias is not None:
                out += bias

    return run
