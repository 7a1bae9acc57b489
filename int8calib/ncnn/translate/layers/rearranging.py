"""Values in other places: Slice, Crop, Padding, PixelShuffle, Tile; and constants (MemoryData)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from int8calib.arrays import Array, Shape, namespace
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.layers.pooling import same_padding
from int8calib.ncnn.translate.layers.registry import blob_shape, engine_axis, extents, ncnn_layer
from int8calib.ncnn.translate.layers.sizes import evaluate
from int8calib.ncnn.translate.options import Options

_REST = -233
"""Stands for all that is left, or for the beginning and the end of an axis."""


def _slice_points(options: Options, shape: Shape) -> tuple[int, list[int]]:
    """The axis, and where it is cut, both ends included."""
    axis = engine_axis(options.integer("axis"), len(shape))
    length, indices = shape[axis], options.integers("indices")
    if indices:
        points = [0, *(i + length if i < 0 else i for i in indices), length]
    else:
        sizes, points = options.integers("slices"), [0]
        for number, size in enumerate(sizes):
            left = (length - points[-1]) // (len(sizes) - number)
            points.append(points[-1] + (left if size == _REST else size))
    # ncnn reads rows one behind the other, so what no slice has would shift all that follows.
    if points[-1] != length or any(a > b for a, b in pairwise(points)):
        raise ShapeError(f"slices at {points[1:]} do not cut {length} entries of axis {axis}")
    return axis, points


def _slice_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    axis, points = _slice_points(options, bottoms[0])
    before, after = bottoms[0][:axis], bottoms[0][axis + 1 :]
    return [(*before, stop - start, *after) for start, stop in pairwise(points)]


@ncnn_layer("Slice", shape=_slice_shape)
def slice_(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The bottom cut along `axis`: into `slices` of which -233 is an even share, or at `indices`.

    Source: ncnn's slice.cpp.
    """
    axis, points = _slice_points(options, bottoms[0].shape)
    kept = [slice(None)] * bottoms[0].ndim
    tops = []
    for start, stop in pairwise(points):
        kept[axis] = slice(start, stop)
        tops.append(bottoms[0][tuple(kept)].copy())
    return tops


def _crop_ranges(options: Options, bottoms: Sequence[Shape]) -> list[tuple[int, int]]:
    """Begin and end of what is kept of each axis behind the batch."""
    shape = bottoms[0]
    dims = len(shape) - 1
    if starts := _crop_array(options, "starts", bottoms):
        ends = _crop_array(options, "ends", bottoms)
        axes = _crop_array(options, "axes", bottoms) or list(range(dims))
        return _crop_between(shape, starts, ends, axes)
    order = {1: "w", 2: "hw", 3: "chw", 4: "cdhw"}[dims]
    offsets = [options.integer(f"{name}offset") for name in order]
    if len(bottoms) > 1:
        reference = extents(bottoms[1])
        sizes = [reference[name] for name in order]
        if dims > len(bottoms[1]) - 1:
            sizes[0] = shape[1]
        return [(start, start + size) for start, size in zip(offsets, sizes, strict=True)]
    if any(offset == _REST for offset in offsets):
        raise UnsupportedLayerError("offsets of -233 are not supported")
    ranges = []
    for name, start, length in zip(order, offsets, shape[1:], strict=True):
        size, left = options.integer(f"out{name}"), length - start
        left -= options.integer(f"{name}offset2")
        ranges.append((start, start + (left if size == _REST else min(size, left))))
    return ranges


def _crop_array(options: Options, name: str, bottoms: Sequence[Shape]) -> list[int]:
    expression = options.text(f"{name}_expr")
    return evaluate(expression, bottoms) if expression else list(options.integers(name))


def _crop_between(
    shape: Shape, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int]
) -> list[tuple[int, int]]:
    ranges = [(0, length) for length in shape[1:]]
    if not len(starts) == len(ends) == len(axes):
        raise ShapeError(f"{len(starts)} starts, {len(ends)} ends and {len(axes)} axes")
    for start, end, axis in zip(starts, ends, axes, strict=True):
        place = engine_axis(axis, len(shape)) - 1
        length = shape[1:][place]
        first = 0 if start == _REST else start + length if start < 0 else start
        last = length if end == _REST else end if end > 0 else end + length
        ranges[place] = (first, min(last, length))
    return ranges


def _crop_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    ranges = _crop_ranges(options, bottoms)
    for (start, stop), length in zip(ranges, bottoms[0][1:], strict=True):
        if not 0 <= start < stop <= length:
            raise ShapeError(f"{start} to {stop} is no part of an axis of {length} entries")
    return [(bottoms[0][0], *(stop - start for start, stop in ranges))]


@ncnn_layer("Crop", shape=_crop_shape)
def crop(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """A part of the bottom: from starts to ends, or of sizes from offsets, or the second's size.

    Source: ncnn's crop.cpp, resolve_crop_roi.
    """
    ranges = _crop_ranges(options, [bottom.shape for bottom in bottoms])
    kept = (slice(None), *(slice(*ends) for ends in ranges))
    return [bottoms[0][kept].copy()]


_MODES = ("constant", "edge", "reflect")


def _pads(options: Options, shape: Shape) -> list[tuple[int, int]]:
    """What is put before and behind each axis, that of the batch included."""
    if options.integer("type") not in range(len(_MODES)):
        raise UnsupportedLayerError(f"type {options.integer('type')}; expected 0, 1 or 2")
    sides = (("left", "right"), ("top", "bottom"), ("front", "behind"))
    named = [(options.integer(begin), options.integer(end)) for begin, end in sides]
    dims = len(shape) - 1
    if min(min(pair) for pair in named) < 0 or dims > 3:
        raise UnsupportedLayerError(f"padding {named} of {dims} axes is not supported")
    return [(0, 0), *reversed(named[:dims])]


def _padding_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    pads = _pads(options, bottoms[0])
    sizes = zip(bottoms[0], pads, strict=True)
    if options.integer("type") == 2 and any(
        max(pair) >= size for size, pair in zip(bottoms[0][1:], pads[1:], strict=True)
    ):
        raise ShapeError(f"padding {pads[1:]} reflects more than {bottoms[0]} has")
    return [tuple(size + begin + end for size, (begin, end) in sizes)]


def _padding_weights(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    count = options.integer("per_channel_pad_data_size")
    return [(count,)] if count else []


@ncnn_layer("Padding", shape=_padding_shape, weights=_padding_weights)
def padding(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The bottom within a border: of `value`, of one value a channel, of its edge, or reflected.

    Source: ncnn's padding.cpp.
    """
    pads, mode = _pads(options, bottoms[0].shape), _MODES[options.integer("type")]
    xp = namespace(bottoms[0])
    if mode != "constant":
        return [xp.pad(bottoms[0], pads, mode="edge" if mode == "edge" else "reflect")]
    value = np.float32(options.number("value"))
    if not weights:
        return [xp.pad(bottoms[0], pads, constant_values=value)]
    top = xp.empty(_padding_shape(options, [bottoms[0].shape])[0], np.float32)
    top[:] = weights[0].reshape(-1, *(1,) * (top.ndim - 2))
    inside = (
        slice(begin, begin + size) for (begin, _), size in zip(pads, bottoms[0].shape, strict=True)
    )
    top[tuple(inside)] = bottoms[0]
    return [top]


SAME_PADDING = "SamePadding"
"""What a convolution whose padding is SAME does first."""
_SAME_UPPER = -233


def _same_pads(options: Options, shape: Shape) -> list[tuple[int, int]]:
    sizes = []
    for name in ("kernel", "stride", "dilation"):
        sizes.append((options.integer(f"{name}_h"), options.integer(f"{name}_w")))
    kernel, stride, dilation = sizes
    extent = [step * (taps - 1) + 1 for taps, step in zip(kernel, dilation, strict=True)]
    upper = options.integer("pad_left") == _SAME_UPPER
    begin, end = same_padding(shape[2:], extent, stride, upper=upper)
    return [(0, 0), (0, 0), (begin[0], end[0]), (begin[1], end[1])]


def _same_padding_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    if len(bottoms[0]) != 4:
        raise UnsupportedLayerError(f"bottom has shape {bottoms[0]}; images are supported")
    sizes = zip(bottoms[0], _same_pads(options, bottoms[0]), strict=True)
    return [tuple(size + begin + end for size, (begin, end) in sizes)]


@ncnn_layer(SAME_PADDING, shape=_same_padding_shape, part=True)
def same_padding_layer(
    options: Options, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The bottom within a border that gives a convolution a window for each stride.

    Source: make_padding in ncnn's convolution.cpp.
    """
    value = np.float32(options.number("pad_value"))
    pads = _same_pads(options, bottoms[0].shape)
    return [namespace(bottoms[0]).pad(bottoms[0], pads, constant_values=value)]


OUTPUT_CUT = "OutputCut"
"""What a deconvolution whose padding is SAME does last."""


def _cut_to(options: Options, shape: Shape) -> list[slice]:
    size = options.integer("output_h"), options.integer("output_w")
    if len(shape) != 4 or any(a < b for a, b in zip(shape[2:], size, strict=True)):
        raise ShapeError(f"{size[0]}x{size[1]} cannot be cut out of {shape}")
    upper = options.integer("pad_left") == _SAME_UPPER
    slices = []
    for length, kept in zip(shape[2:], size, strict=True):
        first = (length - kept) // 2 if upper else length - kept - (length - kept) // 2
        slices.append(slice(first, first + kept))
    return slices


def _output_cut_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    rows, columns = _cut_to(options, bottoms[0])
    return [(*bottoms[0][:2], rows.stop - rows.start, columns.stop - columns.start)]


@ncnn_layer(OUTPUT_CUT, shape=_output_cut_shape, part=True)
def output_cut(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The middle of the bottom, of the size given. Source: ncnn's deconvolution.cpp."""
    rows, columns = _cut_to(options, bottoms[0].shape)
    return [bottoms[0][:, :, rows, columns].copy()]


def _shuffle_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    factor = options.integer("upscale_factor")
    if len(bottoms[0]) != 4 or factor < 1 or bottoms[0][1] % factor**2:
        raise ShapeError(f"bottom {bottoms[0]} does not divide by upscale_factor {factor}")
    n, channels, height, width = bottoms[0]
    return [(n, channels // factor**2, height * factor, width * factor)]


@ncnn_layer("PixelShuffle", shape=_shuffle_shape)
def pixel_shuffle(
    options: Options, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Channels moved into blocks of pixels; mode 1 has a block's channels C / block^2 apart.

    Source: ncnn's pixelshuffle.cpp.
    """
    factor, x = options.integer("upscale_factor"), bottoms[0]
    n, _, height, width = x.shape
    if options.integer("mode") == 0:
        moved = x.reshape(n, -1, factor, factor, height, width).transpose(0, 1, 4, 2, 5, 3)
    else:
        moved = x.reshape(n, factor, factor, -1, height, width).transpose(0, 3, 4, 1, 5, 2)
    return [moved.copy().reshape(_shuffle_shape(options, [x.shape])[0])]


def _tiles(options: Options, shape: Shape) -> list[int]:
    repeats = options.integers("repeats")
    if not repeats:
        counts = [1] * len(shape)
        counts[engine_axis(options.integer("axis"), len(shape))] = options.integer("tiles")
        return counts
    if len(repeats) > len(shape) - 1 or min(repeats) < 1:
        raise UnsupportedLayerError(f"repeats {list(repeats)} of {shape} are not supported")
    return [1] * (len(shape) - len(repeats)) + list(repeats)


def _tile_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    tiles = _tiles(options, bottoms[0])
    return [tuple(size * count for size, count in zip(bottoms[0], tiles, strict=True))]


@ncnn_layer("Tile", shape=_tile_shape)
def tile(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """The bottom several times along `axis`, or along all. Source: ncnn's tile.cpp."""
    xp = namespace(bottoms[0])
    return [xp.ascontiguousarray(xp.tile(bottoms[0], _tiles(options, bottoms[0].shape)))]


def memory_data_shape(options: Options) -> Shape:
    """The shape of a MemoryData's blob without a batch."""
    sizes = [size for name in "whdc" if (size := options.integer(name))]
    return blob_shape(1, sizes)[1:]


def _memory_data_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    return [(bottoms[0][0], *memory_data_shape(options))]


def _memory_data_weights(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    return [memory_data_shape(options)]


@ncnn_layer("MemoryData", shape=_memory_data_shape, weights=_memory_data_weights)
def memory_data(
    options: Options, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The stored blob, once for each image of the bottom, an input. Source: memorydata.cpp."""
    return [namespace(bottoms[0]).repeat(weights[0][None], len(bottoms[0]), axis=0)]
