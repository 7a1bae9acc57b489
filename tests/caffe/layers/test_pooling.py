"""Pooling and SPP against OpenCV and naive loops, with every way to round and to pad."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_proto import caffe_pb2
from int8calib.errors import ShapeError, UnsupportedLayerError
from tests.layer_cases import Case, check
from tests.ncnn_layer import ncnn_layer, stacked


def pool(x, maximum, kernel, stride, pad, ceil=True, end=None, inside=False):
    """Caffe's loops: (values, places of the maxima); sizes up by `ceil`, windows clipped.

    `pad` is the padding above and left, `end` that below and right where it differs; with
    `inside` a mean is over the pixels of the image alone.
    """
    n, channels, *lengths = x.shape
    size, end = [], end or pad
    for length, k, s, p, q in zip(lengths, kernel, stride, pad, end, strict=True):
        count = (math.ceil if ceil else math.floor)((length + p + q - k) / s) + 1
        if any((*pad, *end)) and (count - 1) * s >= length + p:
            count -= 1
        size.append(count)
    top, places = np.zeros((n, channels, *size)), np.full((n, channels, *size), -1)
    for b, c, i, j in np.ndindex(*top.shape):
        y, z = i * stride[0] - pad[0], j * stride[1] - pad[1]
        y_end, z_end = (
            min(y + kernel[0], lengths[0] + end[0]),
            min(z + kernel[1], lengths[1] + end[1]),
        )
        area = (y_end - y) * (z_end - z)
        if inside:
            area = (min(y_end, lengths[0]) - max(y, 0)) * (min(z_end, lengths[1]) - max(z, 0))
        best, total = -np.finfo(np.float32).max, 0.0
        for row in range(max(y, 0), min(y_end, lengths[0])):
            for column in range(max(z, 0), min(z_end, lengths[1])):
                total += x[b, c, row, column]
                if x[b, c, row, column] > best:
                    best = x[b, c, row, column]
                    places[b, c, i, j] = row * lengths[1] + column
        top[b, c, i, j] = best if maximum else total / area
    return top, places


def loops(params, weights, bottoms):
    param = params.pooling_param
    kernel, stride, pad = (
        (getattr(param, f"{name}_h") or whole, getattr(param, f"{name}_w") or whole)
        for name, whole in (
            ("kernel", param.kernel_size), ("stride", param.stride), ("pad", param.pad)
        )
    )  # fmt: skip
    if param.global_pooling:
        kernel, stride, pad = bottoms[0].shape[2:], (1, 1), (0, 0)
    maximum = param.pool == caffe_pb2.PoolingParameter.MAX
    ceil = (
        param.round_mode == caffe_pb2.PoolingParameter.CEIL
        and param.ceil_mode
        and not param.round_below
    )
    begin, end = (param.pad_t, param.pad_l), (param.pad_b, param.pad_r)
    if not any((*begin, *end)):
        begin = end = pad
    inside = param.pool == caffe_pb2.PoolingParameter.AVE_EXC_PAD
    tops = pool(bottoms[0], maximum, kernel, stride, begin, ceil, end, inside)
    return list(tops[: len(params.top)])


def in_ncnn(params, weights, bottoms):
    """Sizes rounded down in ncnn's runtime, which averages over the pixels of the image."""
    param = params.pooling_param
    options = {0: int(param.pool != caffe_pb2.PoolingParameter.MAX), 1: param.kernel_size,
               2: param.stride, 3: param.pad_l, 14: param.pad_r, 13: param.pad_t, 15: param.pad_b,
               5: 1, 6: 0}  # fmt: skip
    text = " ".join(f"{key}={value}" for key, value in options.items())
    return stacked(ncnn_layer("Pooling", text, bottoms))


def spp(params, weights, bottoms):
    (x,) = bottoms
    parts = []
    for level in range(params.spp_param.pyramid_height):
        bins = 2**level
        kernel = [math.ceil(length / bins) for length in x.shape[2:]]
        pad = [(k * bins - length + 1) // 2 for k, length in zip(kernel, x.shape[2:], strict=True)]
        maximum = params.spp_param.pool == caffe_pb2.SPPParameter.MAX
        values, _ = pool(x, maximum, kernel, kernel, pad)
        parts += [value.reshape(1, -1) for value in values]
    count = len(parts) // len(x)
    assert count == params.spp_param.pyramid_height
    rows = [np.concatenate(parts[b :: len(x)], axis=1) for b in range(len(x))]
    return [np.concatenate(rows)]


def ties(rng, shape):
    """Few different values, so that most windows hold their maximum twice."""
    return rng.integers(-2, 3, shape)


GEOMETRIES = (
    "kernel_size: 3 stride: 2",
    "kernel_size: 2 stride: 2",
    "kernel_size: 3 stride: 2 pad: 1",
    "kernel_size: 3 stride: 1 pad: 1",
    "kernel_h: 3 kernel_w: 5 stride_h: 2 stride_w: 1 pad_h: 2 pad_w: 1",
    "kernel_h: 1 kernel_w: 4 stride_h: 3 stride_w: 2 pad_h: 0 pad_w: 3",
    "kernel_size: 5 stride: 3 pad: 4",
)
ROUNDED_DOWN = ("kernel_size: 3 stride: 2 round_mode: FLOOR",
                "kernel_size: 3 stride: 2 pad: 1 round_mode: FLOOR",
                "kernel_size: 3 stride: 4 pad: 1 round_mode: FLOOR",
                "kernel_size: 3 stride: 2 ceil_mode: false",
                "kernel_size: 3 stride: 2 round_below: true")  # fmt: skip
SIDES = ("kernel_size: 3 stride: 2 pad_l: 0 pad_r: 1 pad_t: 0 pad_b: 1",
         "kernel_size: 3 stride: 1 pad_l: 2 pad_r: 1 pad_t: 1 pad_b: 0",
         "kernel_size: 5 stride: 3 pad_r: 4",
         "kernel_size: 3 stride: 4 pad_l: 1 pad_r: 2")  # fmt: skip
METHODS = ("MAX", "AVE")
# OpenCV does not know round_mode, and where only one axis is padded it drops windows that start
# outside the image on that axis only.
NOT_IN_OPENCV = [(m, g) for m in METHODS for g in (*ROUNDED_DOWN, GEOMETRIES[5])]

CASES = (
    *(Case("Pooling", f"pooling_param {{ pool: {method} {geometry} }}", (shape,), oracle=oracle)
      for method in METHODS for geometry in (*GEOMETRIES, *ROUNDED_DOWN)
      for shape in ((2, 3, 11, 13), (2, 5, 12, 8)) for oracle in (None, loops)
      if oracle is loops or (method, geometry) not in NOT_IN_OPENCV),
    *(Case("Pooling", f"pooling_param {{ pool: {method} {geometry} }}", (shape,), oracle=loops)
      for method in (*METHODS, "AVE_EXC_PAD") for geometry in SIDES
      for shape in ((2, 3, 11, 13), (2, 5, 12, 8))),
    *(Case("Pooling", f"pooling_param {{ pool: {method} {geometry} round_below: true }}",
           ((2, 3, 11, 13),), oracle=oracle, label=f"{method} {geometry} rounded down")
      for method in ("MAX", "AVE_TF") for geometry in SIDES for oracle in (loops, in_ncnn)),
    *(Case("Pooling", f"pooling_param {{ pool: {method} {geometry} }}", ((2, 3, 11, 13),),
           oracle=loops) for method in ("AVE_EXC_PAD", "AVE_TF")
      for geometry in (*GEOMETRIES, *ROUNDED_DOWN)),
    Case("Pooling", f"pooling_param {{ {SIDES[1]} }}", ((2, 3, 11, 13),), oracle=loops, tops=2,
         makers=(ties,), label="mask sides"),
    *(Case("Pooling", f"pooling_param {{ pool: {method} global_pooling: true }}",
           ((2, 3, 11, 13),)) for method in METHODS),
    *(Case("Pooling", f"pooling_param {{ pool: {method} kernel_size: 2 stride: 5 }}",
           ((2, 3, 11, 13),), oracle=loops, label=f"{method} stride larger than kernel")
      for method in METHODS),
    Case("Pooling", "pooling_param { kernel_size: 1 stride: 2 }", ((2, 3, 10, 11),),
         oracle=loops, label="a window without a pixel"),
    *(Case("Pooling", f"pooling_param {{ {geometry} }}", ((2, 3, 11, 13),), oracle=loops, tops=2,
           makers=(ties,), label=f"mask {geometry}") for geometry in GEOMETRIES),
    Case("Pooling", "pooling_param { global_pooling: true }", ((2, 3, 11, 13),), oracle=loops,
         tops=2, label="mask global"),
    *(Case("SPP", f"spp_param {{ pyramid_height: {height} pool: {method} }}", ((2, 3, 13, 11),),
           oracle=spp) for method in METHODS for height in (1, 3)),
)  # fmt: skip


# Caffe does its sums in 32 bits; the loops here have no such limit.
BEYOND = (
    *(Case("Pooling", f"pooling_param {{ pool: {method} kernel_size: 3 stride: {stride} {more} }}",
           ((2, 3, 11, 13),), oracle=loops)
      for method in ("MAX", "AVE", "AVE_EXC_PAD") for stride in (11, 12, 13, 99, 2**31, 2**32 - 1)
      for more in ("", "pad: 1", "round_below: true")
      if method == "MAX" or more or stride not in (11, 13)),
    *(Case("Pooling", f"pooling_param {{ pool: {method} kernel_size: {kernel} stride: {kernel} }}",
           ((2, 3, 11, 13),), oracle=loops) for method in METHODS for kernel in (14, 2**31)),
    Case("Pooling", f"pooling_param {{ kernel_size: {2**32 - 1} stride: {2**32 - 1} }}",
         ((2, 3, 11, 13),), oracle=loops, tops=2),
)  # fmt: skip


@pytest.mark.parametrize("case", BEYOND, ids=str)
def test_windows_and_strides_far_larger_than_the_image(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("height", [40, 2**32 - 1, 5, 0])
def test_a_pyramid_higher_than_the_image_is_refused(height: int) -> None:
    case = Case("SPP", f"spp_param {{ pyramid_height: {height} }}", ((2, 3, 13, 11),))
    with pytest.raises(ShapeError, match="pyramid_height"):
        case.kind.shape(case.message(), case.bottoms)


def test_three_axes_of_places_are_named() -> None:
    case = Case("Pooling", "pooling_param { kernel_size: 2 }", ((1, 3, 5, 7, 11),))
    with pytest.raises(UnsupportedLayerError, match="3-d pooling is not supported"):
        case.kind.shape(case.message(), case.bottoms)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    ("options", "tops", "found"),
    [
        ("pool: STOCHASTIC kernel_size: 3", 1, "STOCHASTIC"),
        ("kernel_size: 3 pad: 3", 1, "smaller than kernel"),
        ("pool: AVE kernel_size: 3", 2, "MAX only"),
        ("kernel_size: 3 stride: 0", 1, "at least 1"),
        ("kernel_size: 17 round_mode: FLOOR", 1, "smaller than kernel"),
        ("kernel_size: 17", 1, "smaller than kernel"),
        ("kernel_size: 3 pad: 1 pad_l: 1", 1, "one or the other"),
        ("kernel_size: 3 kernel_h: 3 kernel_w: 2", 1, "one or the other"),
        ("kernel_size: 3 pad_t: 3", 1, "smaller than kernel"),
        ("pool: AVE_EXC_PAD kernel_size: 3", 2, "MAX only"),
        ("pool: AVE kernel_size: 1 stride: 11", 1, "without any pixel"),
        ("kernel_size: 3 pad_b: 4294967295", 1, "the limit"),
        ("kernel_size: 4294967295 pad: 4294967294", 1, "the limit"),
    ],
)
def test_impossible_geometry(options: str, tops: int, found: str) -> None:
    case = Case("Pooling", f"pooling_param {{ {options} }}", ((2, 3, 11, 13),), tops=tops)
    with pytest.raises(ShapeError, match=found):
        case.kind.shape(case.message(), case.bottoms)
