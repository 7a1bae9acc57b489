"""Caffe layers that join, cut, move, resize or sum up blobs, as ncnn layers."""

from __future__ import annotations

from caffe_proto import caffe_pb2
from int8calib.ncnn.convert.context import BlobName, Conversion, real, reals, sizes
from int8calib.ncnn.param import Value

_Eltwise = caffe_pb2.EltwiseParameter
_Reduction = caffe_pb2.ReductionParameter
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
    if len({c.shape(i) for i in range(len(c.layer.bottoms))}) > 1:
        raise c.refused("bottoms of different shapes", "ncnn sums up equal shapes only")
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
    bottoms: tuple[BlobName, ...] = (blob,)
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
            tops=bottoms,
            suffix="_crop",
        )
    height, width = c.top_shape()[2:]
    one = real(1.0)
    params: dict[int, Value] = {0: 2, 1: one, 2: one, 3: height, 4: width, 6: 1}
    c.add("Interp", params, bottoms=bottoms)


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
