"""Fast twin of depthwise convolution: long contiguous multiply-adds instead of many short rows.

Each channel is laid out flat with its padding, so that a tap (row i, column j of the kernel) is
the same flat array begun `i * pitch + j` later: one output row runs into the next, and the few
values between rows are computed and thrown away. With a stride, the image is first split into
its phases (every second row and column, say), and each tap reads one phase. einsum then sums all
rows of one kernel column in one call. Channels go through in chunks that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from int8calib.layers.registry import Array, Kernel, Shape, Take
from int8calib.layers.windows import Windows

CHUNK = 1 << 17
"""Floats of scratch memory in use at a time (512 KiB): about what the L2 cache of a core holds."""


@dataclass(frozen=True)
class _Column:
    """Taps of one kernel column that read one phase: rows `first`, `first + step`, ..."""

    phase: int
    offset: int
    row_offset: int
    row_step: int
    rows: slice
    column: int


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
            size, windows.extent, windows.stride, (height, width), windows.pad, strict=True
        )
    )
    return _Layout(windows, size, columns, rows)


def _columns(layout: _Layout) -> list[_Column]:
    """The taps in groups that one einsum can sum: the rows of a group are evenly spaced."""
    windows, groups = layout.windows, []
    (rows, columns), (down, across) = windows.kernel, windows.stride
    for first in range(min(down, rows)):
        for column in range(columns):
            begin_row, begin_column = first * windows.dilation[0], column * windows.dilation[1]
            phase = (begin_row % down) * across + begin_column % across
            groups.append(
                _Column(
                    phase,
                    begin_column // across,
                    begin_row // down,
                    windows.dilation[0],
                    slice(first, None, down),
                    column,
                )
            )
    return groups


def has_even_rows(windows: Windows) -> bool:
    """Whether this form knows the geometry: a stride or a dilation, not both."""
    return windows.stride == (1, 1) or windows.dilation == (1, 1)


def plan_depthwise(windows: Windows, weights: Sequence[Array], shape: Shape, take: Take) -> Kernel:
    """A kernel for bottoms of `shape` (N, C, H, W) and weights (C, 1, kernel_h, kernel_w)."""
    _, channels, height, width = shape
    layout = _layout(windows, height, width)
    flat = layout.size[0] * layout.pitch
    chunk = max(1, min(channels, CHUNK // (layout.phases * layout.plane + 2 * flat)))
    planes = take((chunk, layout.phases, layout.plane))
    total, part = take((chunk, flat)), take((chunk, flat))
    taps = [
        (
            _tap_view(planes, layout, column, flat),
            np.ascontiguousarray(weights[0][:, 0, column.rows, column.column]),
        )
        for column in _columns(layout)
    ]
    inside = _phase_views(planes, layout, height, width)
    result = total.reshape(chunk, layout.size[0], layout.pitch)[:, :, : layout.size[1]]
    bias = weights[1].reshape(-1, 1, 1) if len(weights) > 1 else None

    def run_chunk(image: Array, top: Array, channel: int) -> None:
        stop = min(channel + chunk, channels)
        count = stop - channel
        planes.fill(0)
        for target, rows, columns in inside:
            np.copyto(target[:count], image[channel:stop, rows, columns])
        out = total
        for view, factors in taps:
            np.einsum("crl,cr->cl", view[:count], factors[channel:stop], out=out[:count])
            if out is part:
                np.add(total[:count], part[:count], out=total[:count])
            out = part
        if bias is None:
            np.copyto(top[channel:stop], result[:count])
        else:
            np.add(result[:count], bias[channel:stop], out=top[channel:stop])

    def run(bottoms: Sequence[Array], tops: Sequence[Array]) -> None:
        for image, top in zip(bottoms[0], tops[0], strict=True):
            for channel in range(0, channels, chunk):
                run_chunk(image, top, channel)

    return run


def _tap_view(planes: Array, layout: _Layout, column: _Column, flat: int) -> Array:
    """The taps of a group as (chunk, rows, outputs), each row a shifted view of a phase."""
    count = len(range(*column.rows.indices(layout.windows.kernel[0])))
    start = planes[:, column.phase, column.row_offset * layout.pitch + column.offset :]
    return np.lib.stride_tricks.as_strided(
        start,
        shape=(len(planes), count, flat),
        strides=(planes.strides[0], 4 * column.row_step * layout.pitch, 4),
        writeable=False,
    )


def _phase_views(
    planes: Array, layout: _Layout, height: int, width: int
) -> list[tuple[Array, slice, slice]]:
    """For each phase: where its pixels go, and which rows and columns of the image they are."""
    (down, across), (above, left) = layout.windows.stride, layout.windows.pad
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
