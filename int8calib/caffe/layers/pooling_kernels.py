"""Fast paths of pooling: maxima or sums over rows first, then along the rows, in cached chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import FastPath, Scratch
from int8calib.caffe.layers.windows import Windows

CHUNK = 1 << 17
"""Floats of scratch memory in use at a time (512 KiB), so that it stays in the cache."""


def plan_global(maximum: bool) -> FastPath:
    """One window as large as the image."""

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        if maximum:
            np.max(images[0], axis=(2, 3), keepdims=True, out=tops[0])
        else:
            np.mean(images[0], axis=(2, 3), keepdims=True, out=tops[0])

    return run


def plan_windows(
    windows: Windows,
    size: tuple[int, int],
    room: Shape,
    shape: Shape,
    lowest: np.float32,
    counts: Array | None,
    scratch: Scratch,
) -> FastPath:
    """Plan bottoms of `shape` (N, C, H, W) and tops of `size` (out_h, out_w).

    `room` is the (height, width) of the image with its padding; the padding holds `lowest`. With
    `counts` None the maximum is taken, otherwise the sum over `counts` (out_h, out_w).

    A window is first narrowed to one row, for all columns; then each value is combined with the
    ones right of it, row after row as one long array, and the columns that start a window are
    picked. That does more arithmetic than needed (also from one row's end into the next), but
    all of it on contiguous values.
    """
    _, channels, height, width = shape
    combine = np.maximum if counts is None else np.add
    above, left = windows.pad
    is_padded = (height, width) != tuple(room)
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
