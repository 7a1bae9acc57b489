"""Caffe's Pooling and SPP as ncnn layers: where ncnn rounds or counts otherwise, other layers."""

from __future__ import annotations

from caffe_proto import caffe_pb2
from int8calib.caffe.layers.pooling import pooling_windows
from int8calib.caffe.layers.windows import Windows
from int8calib.ncnn.convert.context import Conversion, real
from int8calib.ncnn.param import Value

_Pooling = caffe_pb2.PoolingParameter
MAX_POOL, AVE_POOL = 0, 1
VALID = 1
"""Pooling's pad mode that rounds sizes down."""


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


POOLING = {"Pooling": pooling, "SPP": spp}
"""Converters by Caffe type."""
