"""Fast path of depthwise convolution: long contiguous copies and products instead of short rows.

For each column of the kernel there is a plane of what its taps read: as wide as the top, and with
all rows of the padded image. The planes of a channel lie below each other, so one product with the
weights of a kernel row sums what its taps read, for the whole top at once; the next kernel row
reads the same planes a row further on. With a vertical stride, rows are split into phases first
(every second row, say), and each kernel row reads one phase. Channels go through in chunks that
stay in the cache.

A plane is a shifted copy of the image, or of another plane, where that is as wide: one long copy,
and then the few columns at the edge that the shift has brought in from the next row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import FastPath, Scratch
from int8calib.caffe.layers.windows import Windows

CHUNK = 1 << 18
"""Floats of scratch memory in use at a time (1 MiB): about what the L2 cache of a core holds."""


MAX_TAPS = 1 << 12
"""Taps and phases are walked one by one in Python: larger windows and strides go by im2col."""

_Fill: TypeAlias = Callable[[Array], None]
"""Fills a part of the planes with values of an image's chunk of channels (count, H, W)."""


def suits_depthwise(windows: Windows) -> bool:
    """Whether this way pays: few taps, and few phases."""
    return max(prod(windows.kernel), prod(windows.stride)) <= MAX_TAPS


def plan_depthwise(
    windows: Windows, weights: Sequence[Array], shape: Shape, scratch: Scratch
) -> FastPath:
    """Plan bottoms of `shape` (N, C, H, W) and weights (C, 1, kernel_h, kernel_w)."""
    _, channels, height, width = shape
    (out_h, out_w), (kernel_h, kernel_w) = windows.output_size(height, width), windows.kernel
    down, below = windows.stride[0], windows.dilation[0]
    # Of each phase: the rows of all windows, and those of the image even if no window reads them.
    lines = -(-max((out_h - 1) * down + windows.extent[0], height + windows.pad_begin[0]) // down)
    floats = (down * (kernel_w + 1) * lines + out_h) * out_w
    chunk = max(1, min(channels, CHUNK // floats))
    # The last plane is of ones, which the bias is multiplied with.
    planes = scratch((chunk, down, kernel_w + 1, lines * out_w))
    product = scratch((chunk, 1, out_h * out_w))
    taps = weights[0].reshape(channels, kernel_h, 1, kernel_w)
    rows = [np.ascontiguousarray(taps[:, i]) for i in range(kernel_h)]
    if len(weights) > 1:
        rows[0] = np.concatenate([rows[0], weights[1].reshape(-1, 1, 1)], axis=2)
    read = []
    for i, row in enumerate(rows):
        line, phase = divmod(i * below, down)
        pixels = slice(line * out_w, (line + out_h) * out_w)
        read.append(planes[:, phase, : row.shape[2], pixels])
    fills: list[_Fill] = []
    outside: list[Array] = []
    for phase in sorted({i * below % down for i in range(kernel_h)}):
        grid = planes[:, phase].reshape(chunk, kernel_w + 1, lines, out_w)
        _plan_fills(windows, phase, (height, width), grid[:, :kernel_w], fills, outside)

    def run_chunk(image: Array, top: Array, channel: int) -> None:
        count = len(image)
        these = slice(channel, channel + count)
        for fill in fills:
            fill(image)
        np.matmul(rows[0][these], read[0][:count], out=top)
        for row, values in zip(rows[1:], read[1:], strict=True):
            np.matmul(row[these], values[:count], out=product[:count])
            np.add(top, product[:count], out=top)

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for part in outside:
            part.fill(0)
        planes[:, 0, kernel_w].fill(1)
        for image, top in zip(bottoms[0], tops[0], strict=True):
            flat = top.reshape(channels, 1, -1)
            for channel in range(0, channels, chunk):
                stop = channel + chunk
                run_chunk(image[channel:stop], flat[channel:stop], channel)

    return run


def _plan_fills(
    windows: Windows,
    phase: int,
    size: tuple[int, int],
    planes: Array,
    fills: list[_Fill],
    outside: list[Array],
) -> None:
    """Append what fills the planes (chunk, columns, lines, out_w) of one phase of the rows.

    `outside` is what lies outside of the image and is not filled: it stays 0 for all channels.
    """
    height, width = size
    down, across = windows.stride
    above, left = windows.pad_begin
    out_w = planes.shape[3]
    rows = slice((phase - above) % down, height, down)
    first = (rows.start + above) // down
    last = first + len(range(*rows.indices(height)))
    outside += [planes[:, :, :first], planes[:, :, last:]]
    inside = planes[:, :, first:last]
    made: dict[int, tuple[int, int]] = {}

    def add_pixels(j: int, begin: int, end: int) -> tuple[int, int]:
        """Fill columns of plane `j` with pixels; returns which of them have any of the image."""
        origin = left - j * windows.dilation[1]
        begin = min(max(begin, -(-origin // across)), end)
        end = max(min(end, -(-(width + origin) // across)), begin)
        if begin < end:
            pixels = slice(begin * across - origin, (end - 1) * across - origin + 1, across)
            fills.append(_pixels(inside[:, j, :, begin:end], rows, pixels))
        return begin, end

    for j in range(windows.kernel[1]):
        plane = inside[:, j]
        shift, column = divmod(j * windows.dilation[1], across)
        if (down, across, out_w) == (1, 1, width) and abs(shift - left) < width:
            fills += _shifted_image(plane, shift - left)
        elif column in made and shift - made[column][1] < out_w:
            before, known = made[column]
            more = shift - known
            fills.append(_copied(_flat(plane)[:, :-more], _flat(inside[:, before])[:, more:]))
            fills.append(_zeros(plane[:, :, out_w - more :]))
            add_pixels(j, out_w - more, out_w)
        else:
            begin, end = add_pixels(j, 0, out_w)
            outside += [plane[:, :, :begin], plane[:, :, end:]]
        made.setdefault(column, (j, shift))


def _flat(plane: Array) -> Array:
    """A view (chunk, lines * out_w) of a plane (chunk, lines, out_w)."""
    return plane.reshape(len(plane), plane.shape[1] * plane.shape[2])


def _shifted_image(plane: Array, shift: int) -> list[_Fill]:
    """A plane of the image's own width, begun `shift` pixels later (or earlier, if negative)."""
    flat = _flat(plane)
    if shift >= 0:
        edge = plane[:, :, plane.shape[2] - shift :]
        return [_image(flat[:, : flat.shape[1] - shift], shift), _zeros(edge)]
    return [_image(flat[:, -shift:], 0), _zeros(plane[:, :, :-shift])]


def _image(target: Array, first: int) -> _Fill:
    """From the pixel `first` on, as they lie in memory."""

    def fill(image: Array) -> None:
        pixels = image.reshape(len(image), -1)
        np.copyto(target[: len(image)], pixels[:, first : first + target.shape[1]])

    return fill


def _pixels(target: Array, rows: slice, columns: slice) -> _Fill:
    """These rows and columns of the image."""

    def fill(image: Array) -> None:
        np.copyto(target[: len(image)], image[:, rows, columns])

    return fill


def _copied(target: Array, source: Array) -> _Fill:
    """What another plane has."""

    def fill(image: Array) -> None:
        np.copyto(target[: len(image)], source[: len(image)])

    return fill


def _zeros(target: Array) -> _Fill:
    """Zeros."""

    def fill(image: Array) -> None:
        target[: len(image)] = 0

    return fill
