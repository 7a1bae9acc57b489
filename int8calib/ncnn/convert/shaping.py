"""Caffe layers that pool, join, cut, move or resize, as ncnn layers."""

from __future__ import annotations

from caffe_proto import caffe_pb2
from int8calib.caffe.layers.pooling import pooling_windows
from int8calib.caffe.layers.windows import Windows
from int8calib.ncnn.convert.context import Conversion, real, reals, sizes
from int8calib.ncnn.param import Value

_Pooling = caffe_pb2.PoolingParameter
_Eltwise = caffe_pb2.EltwiseParameter
_Reduction = caffe_pb2.ReductionParameter
MAX_POOL, AVE_POOL = 0, 1
VALID = 1
"""Pooling's pad mode that rounds sizes down."""
LAST = -233
"""Slice: what is left; Crop: up to the end."""
ABSENT = -233
_ELTWISE = {_Eltwise.PROD: 0, _Eltwise.SUM: 1, _Eltwise.MAX: 2}
_REDUCTIONS = {_Reduction.SUM: 0, _Reduction.ASUM: 1, _Reduction.SUMSQ: 2, _Reduction.MEAN: 3}
_ORDERS = {
    (1, 2, 3): 0,
    (1, 3, 2): 1,
    (2, 1, 3): 2,
    (2, 3, 1): 3,
    (3, 1, 2): 4,
    (3, 2, 1): 5,
}


def pooling(c: Conversion) -> None:
    """Pooling; means over padding and rounding as Caffe does them, where ncnn can."""
    param = c.params.pooling_param
    if len(c.layer.tops) > 1:
        raise c.refused("second top", "ncnn's Pooling gives no mask")
    height, width = c.shape()[2:]
    windows = pooling_windows(c.params, height, width)
    kind = MAX_POOL if param.pool == _Pooling.MAX else AVE_POOL
    if param.global_pooling:
        c.top_axes = 1
        size = int(param.kernel_size)
        c.add("Pooling", {0: kind, 1: size, 2: int(param.stride), 3: int(param.pad), 4: 1})
        return
    top = c.top_shape()[2:]
    full, floor = _full_size(windows, height, width), _floor_size(windows, height, width)
    if top not in (full, floor):
        raise c.refused("rounding of its size", f"Caffe gives {top}, ncnn {full} or {floor}")
    valid = top != full
    counts_padding = kind == AVE_POOL and param.pool == _Pooling.AVE and windows.padded
    tail = not valid and full != floor
    empty = kind == AVE_POOL and _empty_window(windows, top, (height, width))
    if empty and not counts_padding:
        raise c.refused("a last window without any pixel", "its mean is not a number in ncnn")
    if counts_padding and (tail or empty):
        _padded_mean(c, windows)
        return
    params = _pooling_params(kind, windows, both=bool(param.kernel_h and param.kernel_w))
    if valid:
        params[5] = VALID
    if counts_padding:
        params[6] = 1
    c.add("Pooling", params)


def _pooling_params(kind: int, w: Windows, *, both: bool = False) -> dict[int, Value]:
    params: dict[int, Value] = {0: kind, 1: w.kernel[1]}
    if w.kernel[0] != w.kernel[1] or both:
        params[11] = w.kernel[0]
    params[2] = w.stride[1]
    if w.stride[0] != w.stride[1]:
        params[12] = w.stride[0]
    params[3] = w.pad_begin[1]
    even = w.pad_begin == w.pad_end
    if w.pad_begin[0] != w.pad_begin[1] or not even:
        params[13] = w.pad_begin[0]
    if not even:
        params |= {14: w.pad_end[1], 15: w.pad_end[0]}
    return params | {4: 0}


def _full_size(w: Windows, height: int, width: int) -> tuple[int, int]:
    """ncnn's size by default: every window that begins within the padded image counts."""
    rooms = zip(w.padded_size(height, width), w.kernel, w.stride, strict=True)
    rows, columns = ((size - kernel + stride - 1) // stride + 1 for size, kernel, stride in rooms)
    return rows, columns


def _floor_size(w: Windows, height: int, width: int) -> tuple[int, int]:
    rooms = zip(w.padded_size(height, width), w.kernel, w.stride, strict=True)
    rows, columns = ((size - kernel) // stride + 1 for size, kernel, stride in rooms)
    return rows, columns


def _empty_window(w: Windows, top: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether a last window holds padding only, whose mean ncnn takes as 0 / 0."""
    starts = (
        (n - 1) * stride - pad for n, stride, pad in zip(top, w.stride, w.pad_begin, strict=True)
    )
    return any(start >= length for start, length in zip(starts, size, strict=True))


def _padded_mean(c: Conversion, w: Windows) -> None:
    """A mean that counts padding, but not what hangs over behind it: padding as a layer."""
    padded = (c.between("_padded"),)
    pads: dict[int, Value] = {
        0: w.pad_begin[0],
        1: w.pad_end[0],
        2: w.pad_begin[1],
        3: w.pad_end[1],
        4: 0,
        5: real(0.0),
    }
    c.add("Padding", pads, tops=padded, suffix="_padding")
    c.add("Pooling", _pooling_params(AVE_POOL, Windows(w.kernel, w.stride)), bottoms=padded)


def spp(c: Conversion) -> None:
    """SPP by adaptive pooling, where its windows are all of one size."""
    param = c.params.spp_param
    height, width = c.shape()[2:]
    kind = MAX_POOL if param.pool == type(param).MAX else AVE_POOL
    parts = []
    for level in range(param.pyramid_height):
        bins = 2**level
        if height % bins or width % bins:
            raise c.refused(
                f"pyramid_height {param.pyramid_height}",
                f"{height}x{width} does not divide by {bins}",
            )
        pooled, part = c.between(f"_pooled{level}"), c.between(f"_level{level}")
        parts.append(part)
        if bins == 1:
            c.add("Pooling", {0: kind, 4: 1}, tops=(part,), suffix=f"_pool{level}")
            continue
        c.add("Pooling", {0: kind, 7: 1, 8: bins}, tops=(pooled,), suffix=f"_pool{level}")
        c.add("Flatten", bottoms=(pooled,), tops=(part,), suffix=f"_flatten{level}")
    c.top_axes = 1
    c.add("Concat", {0: 0}, bottoms=parts)


def concat(c: Conversion) -> None:
    """Concat along an axis that is not the batch."""
    param = c.params.concat_param
    axis = int(param.concat_dim) if param.HasField("concat_dim") else int(param.axis)
    bottoms = c.even_bottoms()
    c.add("Concat", {0: c.axis(axis)}, bottoms=bottoms)


def slice_(c: Conversion) -> None:
    """Slice into equal parts, or at the points given."""
    param = c.params.slice_param
    axis = int(param.slice_dim) if param.HasField("slice_dim") else int(param.axis)
    points = [int(point) for point in param.slice_point]
    lengths: tuple[int, ...]
    if points:
        begins = [0, *points[:-1]]
        lengths = (*(end - begin for begin, end in zip(begins, points, strict=True)), LAST)
    else:
        lengths = (LAST,) * len(c.layer.tops)
    c.add("Slice", {0: lengths, 1: c.axis(axis)})


def split(c: Conversion) -> None:
    """Split: the same blob under several names."""
    c.add("Split")


def eltwise(c: Conversion) -> None:
    """Product, weighted sum or maximum."""
    param = c.params.eltwise_param
    c.add(
        "Eltwise", {0: _ELTWISE[param.operation], 1: reals(param.coeff)}, bottoms=c.even_bottoms()
    )


def sum_(c: Conversion) -> None:
    """Add: the sum of all bottoms."""
    c.add("Eltwise", {0: _ELTWISE[_Eltwise.SUM], 1: ()}, bottoms=c.even_bottoms())


def flatten(c: Conversion) -> None:
    """Flatten of everything, else a Reshape to the shape it makes."""
    if len(c.top_shape()) == 2:
        c.top_axes = 1
        c.add("Flatten")
    else:
        _reshape_to_top(c)


def reshape(c: Conversion) -> None:
    """Reshape; sizes that Caffe copies from another axis than ncnn would are written out."""
    param = c.params.reshape_param
    dims = [int(dim) for dim in param.shape.dim]
    plain = param.axis == 0 and param.num_axes == -1 and 1 <= len(dims) <= 4
    same_names = len(dims) == len(c.shape()) == c.axes() + 1
    if not plain or (0 in dims[1:] and not same_names) or (len(dims) > 1 and c.top_shape()[0] != 1):
        _reshape_to_top(c)
        return
    w = {1: 0, 2: 1, 3: 2, 4: 3}[len(dims)]
    params: dict[int, Value] = {0: dims[w], 1: ABSENT, 2: ABSENT, 3: 0}
    if len(dims) >= 3:
        params[1] = dims[w - 1]
    if len(dims) == 4:
        params[2] = dims[1]
    c.add("Reshape", params)


def _reshape_to_top(c: Conversion) -> None:
    top = c.top_shape()
    if top[:1] != c.shape()[:1]:
        raise c.refused(f"top shape {top}", "ncnn has no batch axis to move values to")
    if len(top) > 5:
        raise c.refused(f"top shape {top}", "ncnn's blobs have at most four axes")
    c.add("Reshape", sizes(top))


def permute(c: Conversion) -> None:
    """Axes in another order, the batch first."""
    count = len(c.shape())
    order = [int(axis) for axis in c.params.permute_param.order]
    order += [axis for axis in range(count) if axis not in order]
    code = _ORDERS.get((*order[1:], *range(count, 4)))
    if order[0] != 0 or code is None:
        raise c.refused(f"order {order}", "ncnn keeps the batch first and moves three axes at most")
    c.add("Permute", {0: code}, bottoms=(c.spread(0),))


def crop(c: Conversion) -> None:
    """Crop to the second bottom's size; by numbers where ncnn would cut channels too."""
    param, (shape, reference) = c.params.crop_param, (c.shape(), c.shape(1))
    count = len(shape)
    first = param.axis % count if param.axis < 0 else int(param.axis)
    offsets = [int(offset) for offset in param.offset]
    if count == 4 and first > 0 and reference[1 : max(first, 1)] == shape[1 : max(first, 1)]:
        by_axis = dict.fromkeys(range(first, count), offsets[0] if offsets else 0)
        by_axis.update(
            {first + i: offset for i, offset in enumerate(offsets)} if len(offsets) > 1 else {}
        )
        ids = {3: 0, 2: 1, 1: 2}
        params = (
            {ids[axis]: by_axis[axis] for axis in (3, 2, 1) if axis in by_axis} if offsets else {}
        )
        c.add("Crop", dict(sorted(params.items())))
        return
    axes = range(max(first, 1), count)
    all_offsets = offsets if len(offsets) > 1 else (offsets or [0]) * (count - first)
    _crop_by_numbers(
        c,
        {
            axis: (all_offsets[axis - first], all_offsets[axis - first] + reference[axis])
            for axis in axes
        },
    )


def crop_center(c: Conversion) -> None:
    """CropCenter: the middle of each axis."""
    shape, top = c.shape(), c.top_shape()
    begins = [(before - after) // 2 for before, after in zip(shape, top, strict=True)]
    _crop_by_numbers(
        c, {a: (begins[a], begins[a] + top[a]) for a in range(1, len(shape)) if shape[a] != top[a]}
    )


def _crop_by_numbers(c: Conversion, kept: dict[int, tuple[int, int]]) -> None:
    c.add(
        "Crop",
        {
            9: tuple(begin for begin, _ in kept.values()),
            10: tuple(end for _, end in kept.values()),
            11: tuple(axis - 1 for axis in kept),
        },
        bottoms=c.layer.bottoms[:1],
    )


def tile(c: Conversion) -> None:
    """The bottom several times along an axis."""
    param = c.params.tile_param
    c.add("Tile", {0: c.axis(param.axis) % c.axes(), 1: int(param.tiles)})


def shuffle_channel(c: Conversion) -> None:
    """Channels of groups interleaved."""
    c.add("ShuffleChannel", {0: int(c.params.shuffle_channel_param.group)})


def interp(c: Conversion) -> None:
    """Bilinear resizing with aligned corners, to the size it has at conversion."""
    param, blob = c.params.interp_param, c.layer.bottoms[0]
    bottoms: tuple[object, ...] = (blob,)
    if param.pad_beg or param.pad_end:
        height, width = c.shape()[2:]
        bottoms = (c.between("_inside"),)
        c.add(
            "Crop",
            {
                9: (-param.pad_beg, -param.pad_beg),
                10: (height + param.pad_end, width + param.pad_end),
                11: (1, 2),
            },
            bottoms=(blob,),
            tops=bottoms,  # type: ignore[arg-type]
            suffix="_crop",
        )
    height, width = c.top_shape()[2:]
    one = real(1.0)
    params: dict[int, Value] = {0: 2, 1: one, 2: one, 3: height, 4: width, 6: 1}
    c.add("Interp", params, bottoms=bottoms)  # type: ignore[arg-type]


def nearest(c: Conversion) -> None:
    """Every pixel repeated: Upsample without a mask, and the like."""
    if len(c.layer.bottoms) > 1 and c.layer.type == "Upsample":
        raise c.refused("second bottom", "ncnn does not place values by a mask of maxima")
    (height, width), (rows, columns) = c.shape()[2:], c.top_shape()[2:]
    if rows % height or columns % width:
        raise c.refused(f"{height}x{width} to {rows}x{columns}", "ncnn repeats pixels whole times")
    params: dict[int, Value] = {0: 1, 1: real(rows / height), 2: real(columns / width)}
    c.add("Interp", params, bottoms=c.layer.bottoms[:1])


def reduction(c: Conversion) -> None:
    """A sum, mean, ... over all axes from one on."""
    param = c.params.reduction_param
    count = len(c.shape())
    axis = int(param.axis) % count if param.axis < 0 else int(param.axis)
    params: dict[int, Value] = {0: _REDUCTIONS[param.operation]}
    if axis <= 1:
        params[1] = 1
        c.top_axes = 1
    else:
        params |= {1: 0, 3: tuple(range(axis - 1, count - 1)), 5: 1}
    if param.coeff != 1:
        params[2] = real(param.coeff)
    c.add("Reduction", dict(sorted(params.items())), bottoms=(c.spread(0),))


SHAPING = {
    "Pooling": pooling,
    "SPP": spp,
    "Concat": concat,
    "Slice": slice_,
    "Split": split,
    "Eltwise": eltwise,
    "Add": sum_,
    "Flatten": flatten,
    "Reshape": reshape,
    "Permute": permute,
    "Crop": crop,
    "CropCenter": crop_center,
    "Tile": tile,
    "ShuffleChannel": shuffle_channel,
    "Interp": interp,
    "Upsample": nearest,
    "UpsampleDarknet": nearest,
    "ResizeNearestNeighbor": nearest,
    "Reduction": reduction,
}
"""Converters by Caffe type."""
