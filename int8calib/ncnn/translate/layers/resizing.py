"""Images made larger or smaller as ncnn's Interp does: nearest, bilinear, bicubic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array, Shape, namespace
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.layers.registry import extents, ncnn_layer
from int8calib.ncnn.translate.layers.sizes import evaluate
from int8calib.ncnn.translate.options import Options

NEAREST, BILINEAR, BICUBIC = 1, 2, 3
_SHARPNESS = np.float32(-0.75)
"""The parameter of the bicubic kernel, as in OpenCV and PyTorch."""

Indices = NDArray[np.int64]


def _given_size(options: Options, bottoms: Sequence[Shape]) -> tuple[int, int] | None:
    """Height and width where they are given as such, not by scales."""
    if expression := options.text("size_expr"):
        width, height = evaluate(expression, bottoms)[:2]
        return height, width
    if len(bottoms) > 1:
        return extents(bottoms[1])["h"], extents(bottoms[1])["w"]
    size = options.integer("output_height"), options.integer("output_width")
    return size if all(size) else None


def _size(options: Options, bottoms: Sequence[Shape]) -> tuple[int, int]:
    given = _given_size(options, bottoms)
    if given is not None:
        return given
    height, width = _plane(bottoms[0])
    scales = (options.number("height_scale"), options.number("width_scale"))
    rows, columns = (
        int(np.float32(size) * np.float32(scale))
        for size, scale in zip((height, width), scales, strict=True)
    )
    return rows, columns


def _plane(shape: Shape) -> tuple[int, int]:
    """Height and width of what is resized; a matrix is resized along its rows alone."""
    return {2: (1, 1), 3: (1, shape[-1])}.get(len(shape), (shape[-2], shape[-1]))


def _interp_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    if options.integer("resize_type") not in (NEAREST, BILINEAR, BICUBIC):
        raise UnsupportedLayerError(f"resize_type {options.integer('resize_type')} is not known")
    if len(bottoms[0]) not in (2, 3, 4):
        raise UnsupportedLayerError(f"bottom has shape {bottoms[0]}; images are supported")
    size = _size(options, bottoms)
    if len(bottoms[0]) == 3:
        return [(*bottoms[0][:2], size[1])]
    if min(size) < 1:
        raise ShapeError(f"a bottom {bottoms[0]} to {size[0]}x{size[1]} leaves no pixel")
    if options.integer("resize_type") == BICUBIC and min(bottoms[0][2:], default=4) < 4:
        raise ShapeError(f"bottom {bottoms[0]} is too small for bicubic resizing; 4 pixels are not")
    return [(*bottoms[0][:2], *size)]


@ncnn_layer("Interp", shape=_interp_shape)
def interp(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """Resizing to a size, by scales, or to the second bottom's size; a vector fills whole planes.

    A place of the top is that of its center in the bottom, scales as given where they are; with
    `align_corner` the corners meet. Source: ncnn's interp.cpp.
    """
    shapes = [bottom.shape for bottom in bottoms]
    x, size, xp = bottoms[0], _size(options, shapes), namespace(bottoms[0])
    if x.ndim == 2:
        return [xp.ascontiguousarray(xp.broadcast_to(x[:, :, None, None], (*x.shape, *size)))]
    if x.ndim == 3:
        x, size = x[:, :, None], (1, size[1])
    if x.shape[2:] == size:
        return [bottoms[0].copy()]
    return [_resized(options, shapes, x, size).reshape(_interp_shape(options, shapes)[0])]


def _resized(options: Options, shapes: Sequence[Shape], x: Array, size: tuple[int, int]) -> Array:
    """Images (N, C, H, W) resized to `size`."""
    kind, corners = options.integer("resize_type"), bool(options.integer("align_corner"))
    given = _given_size(options, shapes) is not None
    scales = (options.number("height_scale"), options.number("width_scale"))
    steps = [
        length / count if given else float(np.float32(1) / np.float32(scale))
        for length, count, scale in zip(x.shape[2:], size, scales, strict=True)
    ]
    if kind == NEAREST:
        rows, columns = (
            _nearest(length, count, step)
            for length, count, step in zip(x.shape[2:], size, steps, strict=True)
        )
        xp = namespace(x)
        picked = x[:, :, xp.asarray(rows[:, None]), xp.asarray(columns)]
        nearest: Array = xp.ascontiguousarray(picked)
        return nearest
    weigh = _linear if kind == BILINEAR else _cubic
    top = x
    for axis, count, step in ((3, size[1], steps[1]), (2, size[0], steps[0])):
        length = x.shape[axis]
        step = (length - 1) / max(count - 1, 1) if corners else step
        if (length, step) != (1, 1):
            top = _blended(top, axis, *weigh(length, count, step, corners))
    return top


def _nearest(length: int, count: int, step: float) -> Indices:
    """For each of `count` entries the one of `length` that it is a copy of."""
    # In float32, as ncnn: a place that is whole in float64 may be just below.
    places = (np.arange(count, dtype=np.float32) * np.float32(step)).astype(np.int64)
    return np.asarray(np.minimum(places, length - 1))


def _places(count: int, step: float, corners: bool) -> tuple[Indices, Array]:
    """The entry at or before the place of each entry of the top, and how far it is behind."""
    offset = 0.0 if corners else 0.5
    place = ((np.arange(count) + offset) * step - offset).astype(np.float32)
    first = np.floor(place)
    return first.astype(np.int64), place - first


def _linear(length: int, count: int, step: float, corners: bool) -> tuple[Indices, Array]:
    """Indices (2, count) of the neighbors of each entry, and their factors."""
    first, part = _places(count, step, corners)
    part = np.where(first < 0, 0, np.where(first >= length - 1, 1, part)).astype(np.float32)
    first = np.clip(first, 0, max(length - 2, 0))
    both = np.stack([first, np.minimum(first + 1, length - 1)])
    return both, np.stack([1 - part, part])


def _cubic(length: int, count: int, step: float, corners: bool) -> tuple[Indices, Array]:
    """Indices (4, count) of the neighbors of each entry, and their factors; edges repeat."""
    first, part = _places(count, step, corners)
    a = _SHARPNESS
    far, near = part + 1, 1 - part
    factors = np.stack(
        [
            a * far**3 - 5 * a * far**2 + 8 * a * far - 4 * a,
            (a + 2) * part**3 - (a + 3) * part**2 + 1,
            (a + 2) * near**3 - (a + 3) * near**2 + 1,
            np.zeros_like(part),
        ]
    )
    factors[3] = 1 - factors[:3].sum(axis=0)
    places = first + np.arange(-1, 3)[:, None]
    return np.clip(places, 0, length - 1), factors


def _blended(x: Array, axis: int, indices: Indices, factors: Array) -> Array:
    """The entries at `indices` along an axis, each times its factors, added up."""
    shape = [1] * x.ndim
    shape[axis] = -1
    xp = namespace(x)

    def weighed(i: int) -> Array:
        part: Array = x.take(xp.asarray(indices[i]), axis=axis)
        part *= xp.asarray(factors[i].reshape(shape))
        return part

    top = weighed(0)
    for i in range(1, len(indices)):
        top += weighed(i)
    values: Array = xp.asarray(top, np.float32)
    return values
