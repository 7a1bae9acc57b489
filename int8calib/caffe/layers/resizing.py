"""Images made larger or smaller: bilinear, by nearest pixels, or by a mask of maxima."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import indices_of, need_count, need_ndim
from int8calib.errors import ShapeError
from int8calib.limits import MAX_VALUES


def _interp_size(params: LayerParameter, bottoms: Sequence[Shape]) -> tuple[int, int]:
    """Height and width of the top: the second bottom's, or by factors, or as given."""
    param = params.interp_param
    if len(bottoms) > 1:
        need_ndim(bottoms[1:], 4)
        return bottoms[1][2], bottoms[1][3]
    if param.HasField("height") and param.HasField("width") and not _one_factor(params):
        return param.height, param.width
    if not (param.HasField("zoom_factor") or param.HasField("shrink_factor")):
        raise ShapeError("interp_param gives no size: set height and width, or zoom_factor")
    if min(param.zoom_factor, param.shrink_factor) < 1:
        raise ShapeError("zoom_factor and shrink_factor must be at least 1")
    height, width = (
        (length + param.pad_beg + param.pad_end - 1) // param.shrink_factor * param.zoom_factor + 1
        for length in bottoms[0][2:]
    )
    return height, width


def _one_factor(params: LayerParameter) -> bool:
    """Whether exactly one of the two factors is set, which counts before height and width."""
    param = params.interp_param
    return bool(param.HasField("zoom_factor") != param.HasField("shrink_factor"))


def _interp_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_ndim(bottoms, 4)
    param = params.interp_param
    if max(param.pad_beg, param.pad_end) > 0:
        raise ShapeError("pad_beg and pad_end must not be positive: Interp only crops")
    size = _interp_size(params, bottoms)
    inside = min(bottoms[0][2:]) + param.pad_beg + param.pad_end
    if min(*size, inside) < 1:
        raise ShapeError(f"a bottom {bottoms[0]} to {size[0]}x{size[1]} leaves no pixel")
    return [(*bottoms[0][:2], *size)]


def _blend(x: Array, axis: int, size: int) -> Array:
    """`x` resized along one axis, first and last entry kept, straight lines between entries."""
    length = x.shape[axis]
    step = (length - 1) / (size - 1) if size > 1 else 0.0
    position = np.arange(size) * step
    low = np.minimum(position.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    shape = [1] * x.ndim
    shape[axis] = size
    xp = namespace(x)
    part = xp.asarray((position - low).astype(np.float32).reshape(shape))
    top: Array = x.take(xp.asarray(low), axis=axis)
    top += (x.take(xp.asarray(high), axis=axis) - top) * part
    return top


@layer("Interp", shape=_interp_shape)
def interp(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Bilinear resizing with the corner pixels kept in the corners.

    top[y] = bottom[y * (H - 1) / (H' - 1)], between two pixels by distance, and the same in x;
    negative `pad_beg` and `pad_end` first cut pixels off. The size is that of the second bottom,
    or (H - 1) // shrink_factor * zoom_factor + 1, or `height` and `width`. Source: InterpLayer of
    the DeepLab and PSPNet forks.
    """
    param, x = params.interp_param, bottoms[0]
    height, width = _interp_shape(params, [bottom.shape for bottom in bottoms])[0][2:]
    first = -param.pad_beg
    x = x[:, :, first : x.shape[2] + param.pad_end, first : x.shape[3] + param.pad_end]
    return [_blend(_blend(x, 2, height), 3, width)]


def _upsample_size(params: LayerParameter, shape: Shape) -> tuple[int, int]:
    """Height and width of the top."""
    param = params.upsample_param
    if bool(param.upsample_h) != bool(param.upsample_w):
        raise ShapeError("give upsample_h and upsample_w, both or none")
    if param.upsample_h:
        return param.upsample_h, param.upsample_w
    if bool(param.scale_h) != bool(param.scale_w):
        raise ShapeError("give scale, or scale_h and scale_w")
    vertical, horizontal = param.scale_h or param.scale, param.scale_w or param.scale
    if min(vertical, horizontal) < 1:
        raise ShapeError(f"upsample scale {vertical}x{horizontal} must be at least 1")
    return (
        shape[2] * vertical - int(param.pad_out_h),
        shape[3] * horizontal - int(param.pad_out_w),
    )


def _upsample_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_ndim(bottoms, 4)
    if len(bottoms) > 2 or bottoms[-1] != bottoms[0]:
        raise ShapeError(f"bottoms {bottoms} are not an image and a mask of its shape")
    return [(*bottoms[0][:2], *_upsample_size(params, bottoms[0]))]


@layer("Upsample", shape=_upsample_shape)
def upsample(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """With a mask: each value goes where Pooling found it, zeros elsewhere; without: nearest.

    The mask holds, for each value, the index y * W' + x of its place in its own plane of the top;
    it is Pooling's second top. Without one every pixel is repeated `scale` times both ways.
    Sources: UpsampleLayer of SegNet's fork and of the YOLO v3 forks. Raises `ModelError` where
    the mask points outside the top.
    """
    x, xp = bottoms[0], namespace(bottoms[0])
    n, channels, height, width = _upsample_shape(params, [bottom.shape for bottom in bottoms])[0]
    if len(bottoms) == 1:
        rows = np.arange(height) * x.shape[2] // height
        columns = np.arange(width) * x.shape[3] // width
        return [x.take(xp.asarray(rows), axis=2).take(xp.asarray(columns), axis=3)]
    what = (
        f"the pixels that the mask points to in a {height}x{width} top (upsample_h and upsample_w "
        "must be the pooled blob's size)"
    )
    mask = indices_of(bottoms[1].reshape(n, channels, -1), height * width, what)
    top = xp.zeros(n * channels * height * width, np.float32)
    planes = xp.arange(n * channels, dtype=np.int64).reshape(n, channels, 1) * (height * width)
    top[(planes + mask).ravel()] = x.ravel()
    return [top.reshape(n, channels, height, width)]


def _darknet_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_count(bottoms, 1)
    need_ndim(bottoms, 4)
    (n, channels, height, width), stride = bottoms[0], params.upsample_darknet_param.stride
    if stride < 1:
        raise ShapeError(f"stride {stride} must be at least 1")
    return [(n, channels, height * stride, width * stride)]


@layer("UpsampleDarknet", shape=_darknet_shape)
def upsample_darknet(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Every pixel `stride` times both ways. Source: UpsampleDarknetLayer of the Synopsys fork."""
    stride = params.upsample_darknet_param.stride
    return [bottoms[0].repeat(stride, axis=2).repeat(stride, axis=3)]


def _nearest_size(params: LayerParameter, bottoms: Sequence[Shape]) -> tuple[int, int, int]:
    """The first of the two axes that are resized, and the height and width of the top."""
    param = params.resize_nearest_neighbor_param
    need_count(bottoms, 1)
    need_ndim(bottoms, 4)
    if param.data_format not in ("NHWC", "NCHW"):
        raise ShapeError(f"data_format is {param.data_format!r}; expected 'NHWC' or 'NCHW'")
    first = 1 if param.data_format == "NHWC" else 2
    height, width = bottoms[0][first : first + 2]
    size = (
        param.output_height if param.HasField("output_height") else height * param.scale_height,
        param.output_width if param.HasField("output_width") else width * param.scale_width,
    )
    if not 1 <= min(size) <= max(size) <= MAX_VALUES:
        raise ShapeError(f"a size of {size[0]:g}x{size[1]:g} is none")
    return first, int(np.float32(size[0])), int(np.float32(size[1]))


def _nearest_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    first, height, width = _nearest_size(params, bottoms)
    shape = list(bottoms[0])
    shape[first : first + 2] = height, width
    return [tuple(shape)]


def _nearest(params: LayerParameter, size: int, length: int) -> NDArray[np.int64]:
    """For each of `size` entries the one of `length` that it is a copy of."""
    corners = params.resize_nearest_neighbor_param.align_corners
    places = np.arange(size, dtype=np.float32)
    if corners and size > 1:
        # Halves go up, as C's roundf takes them.
        places = np.floor(places * (np.float32(length - 1) / np.float32(size - 1)) + 0.5)
    else:
        places = places * (np.float32(length) / np.float32(size))
        places = np.floor(places + np.float32(0.5) if corners else places)
    return np.asarray(np.minimum(places, length - 1), np.int64)


@layer("ResizeNearestNeighbor", shape=_nearest_shape)
def resize_nearest_neighbor(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Every pixel is that of the bottom at floor(place * old size / new size).

    With `align_corners` the corner pixels stay in the corners and places are rounded. The axes
    are those of `data_format` (NHWC by default), the size is `output_height` and `output_width`
    or the bottom's times `scale_height` and `scale_width`. Source: ResizeNearestNeighborLayer of
    the Synopsys fork.
    """
    first, *size = _nearest_size(params, [bottoms[0].shape])
    top = bottoms[0]
    for axis, length in enumerate(size, first):
        places = _nearest(params, length, bottoms[0].shape[axis])
        top = top.take(namespace(top).asarray(places), axis=axis)
    return [top]
