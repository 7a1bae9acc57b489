"""Fast path of depthwise convolution: long contiguous copies and products instead of short rows.

Each channel is laid out flat with its padding, so that a tap (row i, column j of the kernel) is
the same flat array begun `i * pitch + j` later: one output row runs into the next, and the few
values between rows are computed and thrown away. With a stride, the image is first split into
its phases (every second row and column, say), and each tap reads one phase. The taps of a channel
are copied below each other, and one product with its weights sums them. Channels go through in
chunks that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import FastPath, Scratch
from int8calib.caffe.layers.windows import Windows

CHUNK = 1 << 18
"""Floats of scratch memory in use at a time (1 MiB): about what the L2 cache of a core holds."""


MAX_TAPS = 1 << 12
"""Taps and phases are walked one by one in Python: larger windows and strides go by im2col."""


def suits_depthwise(windows: Windows) -> bool:
    """Whether this way pays: few taps, and few phases."""
    return max(prod(windows.kernel), prod(windows.stride)) <= MAX_TAPS


@dataclass(frozen=True)
class _Layout:
    """Where the phases of one padded channel lie: each is `height` rows of `pitch` floats."""

    windows: Windows
    size: tuple[int, int]
    pitch: int
    height: int

    @property
    def plane(self) -> int:
        """Floats of one phase, with room for the last tap to run past the last row."""
        return (self.height + 1) * self.pitch

    @property
    def phases(self) -> int:
        """How many phases there are."""
        return self.windows.stride[0] * self.windows.stride[1]


def _layout(windows: Windows, height: int, width: int) -> _Layout:
    size = windows.output_size(height, width)
    rows, columns = (
        max(count - 1 + (extent - 1) // stride + 1, -(-(length + pad) // stride))
        for count, extent, stride, length, pad in zip(
            size, windows.extent, windows.stride, (height, width), windows.pad_begin, strict=True
        )
    )
    return _Layout(windows, size, columns, rows)


def _taps(layout: _Layout) -> list[tuple[int, int]]:
    """For each tap, row by row: the phase it reads, and how many floats further on."""
    windows = layout.windows
    down, across = windows.stride
    taps = []
    for i in range(windows.kernel[0]):
        for j in range(windows.kernel[1]):
            row, column = i * windows.dilation[0], j * windows.dilation[1]
            phase = row % down * across + column % across
            taps.append((phase, row // down * layout.pitch + column // across))
    return taps


def plan_depthwise(
    windows: Windows, weights: Sequence[Array], shape: Shape, scratch: Scratch
) -> FastPath:
    """Plan bottoms of `shape` (N, C, H, W) and weights (C, 1, kernel_h, kernel_w)."""
    _, channels, height, width = shape
    layout = _layout(windows, height, width)
    taps = _taps(layout)
    flat = layout.size[0] * layout.pitch
    floats = layout.phases * layout.plane + (len(taps) + 1) * flat
    chunk = max(1, min(channels, CHUNK // floats))
    planes = scratch((chunk, layout.phases, layout.plane))
    columns, total = scratch((chunk, len(taps), flat)), scratch((chunk, 1, flat))
    sources = [planes[:, phase, offset : offset + flat] for phase, offset in taps]
    rows = np.ascontiguousarray(weights[0].reshape(channels, 1, -1))
    inside = _phase_views(planes, layout, height, width)
    result = total.reshape(chunk, layout.size[0], layout.pitch)[:, :, : layout.size[1]]
    bias = weights[1].reshape(-1, 1, 1) if len(weights) > 1 else None

    def run_chunk(image: Array, top: Array, channel: int) -> None:
        stop = min(channel + chunk, channels)
        count = stop - channel
        for target, down, across in inside:
            np.copyto(target[:count], image[channel:stop, down, across])
        for tap, source in enumerate(sources):
            np.copyto(columns[:count, tap], source[:count])
        np.matmul(rows[channel:stop], columns[:count], out=total[:count])
        if bias is None:
            np.copyto(top[channel:stop], result[:count])
        else:
            np.add(result[:count], bias[channel:stop], out=top[channel:stop])

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        # What is not inside stays 0 for all channels.
        planes.fill(0)
        for image, top in zip(bottoms[0], tops[0], strict=True):
            for channel in range(0, channels, chunk):
                run_chunk(image, top, channel)

    return run


def _phase_views(
    planes: Array, layout: _Layout, height: int, width: int
) -> list[tuple[Array, slice, slice]]:
    """For each phase: where its pixels go, and which rows and columns of the image they are."""
    (down, across), (above, left) = layout.windows.stride, layout.windows.pad_begin
    views = []
    for row in range(down):
        for column in range(across):
            rows = slice((row - above) % down, height, down)
            columns = slice((column - left) % across, width, across)
            count_rows, count_columns = (
                len(range(*rows.indices(height))),
                len(range(*columns.indices(width))),
            )
            top, begin = (rows.start + above) // down, (columns.start + left) // across
            plane = planes[:, row * across + column, : layout.height * layout.pitch]
            grid = plane.reshape(len(planes), layout.height, layout.pitch)
            count_rows = min(count_rows, layout.height - top)
            count_columns = min(count_columns, layout.pitch - begin)
            views.append(
                (
                    grid[:, top : top + count_rows, begin : begin + count_columns],
                    slice(rows.start, rows.start + count_rows * down, down),
                    slice(columns.start, columns.start + count_columns * across, across),
                )
            )
    return views
