"""Interp and Upsample against OpenCV and loops, and SegNet's pair of Pooling and Upsample."""

from __future__ import annotations

import math

import numpy as np
import pytest

from int8calib.caffe.layers.registry import find_type
from int8calib.errors import ModelError, ShapeError
from tests.layer_cases import Case, check
from tests.ncnn_layer import ncnn_layer, stacked

X = (2, 3, 5, 7)


def interp_to(height, width, first=0, last=0):
    """Bilinear, corners on corners, of the bottom without `first` and `last` pixels."""

    def oracle(params, weights, bottoms):
        x = np.asarray(bottoms[0], np.float64)
        x = x[:, :, first : x.shape[2] - last, first : x.shape[3] - last]
        top = np.empty((*x.shape[:2], height, width))
        for i, j in np.ndindex(height, width):
            y = i * (x.shape[2] - 1) / (height - 1) if height > 1 else 0
            z = j * (x.shape[3] - 1) / (width - 1) if width > 1 else 0
            a, b = min(math.floor(y), x.shape[2] - 2), min(math.floor(z), x.shape[3] - 2)
            upper = x[:, :, a, b] * (1 - z + b) + x[:, :, a, b + 1] * (z - b)
            lower = x[:, :, a + 1, b] * (1 - z + b) + x[:, :, a + 1, b + 1] * (z - b)
            top[:, :, i, j] = upper * (1 - y + a) + lower * (y - a)
        return [top]

    return oracle


def by_mask(height, width):
    def oracle(params, weights, bottoms):
        x, mask = bottoms
        top = np.zeros((*x.shape[:2], height, width))
        for place in np.ndindex(*x.shape):
            row, column = divmod(int(mask[place]), width)
            top[(*place[:2], row, column)] = x[place]
        return [top]

    return oracle


def nearest(vertical, horizontal):
    return lambda params, weights, bottoms: [
        np.kron(bottoms[0], np.ones((1, 1, vertical, horizontal)))
    ]


def places(limit):
    """A mask without repeats in any plane."""

    def maker(rng, shape):
        planes = [rng.permutation(limit)[: shape[2] * shape[3]] for _ in range(shape[0] * shape[1])]
        return np.reshape(planes, shape)

    return maker


def values(rng, shape):
    return rng.normal(size=shape)


def resize_nearest(params, weights, bottoms):
    """The fork's loops, in float32 as there."""
    param, x = params.resize_nearest_neighbor_param, bottoms[0]
    if param.data_format == "NHWC":
        x = np.moveaxis(x, 3, 1)
    factors = (param.scale_height, param.scale_width)
    size = [
        math.floor(np.float32(n) * np.float32(f)) for n, f in zip(x.shape[2:], factors, strict=True)
    ]
    if param.HasField("output_height"):
        size = [param.output_height, param.output_width]
    top = np.empty((*x.shape[:2], *size))
    for i, j in np.ndindex(*size):
        place = []
        for k, new, old in zip((i, j), size, x.shape[2:], strict=True):
            if param.align_corners:
                scale = (old - 1) / np.float32(new - 1) if new > 1 else old / np.float32(new)
                at = math.floor(k * scale + 0.5)
            else:
                at = math.floor(k * (old / np.float32(new)))
            place.append(min(at, old - 1))
        top[:, :, i, j] = x[:, :, place[0], place[1]]
    return [np.moveaxis(top, 1, 3) if param.data_format == "NHWC" else top]


CASES = (
    *(Case("ResizeNearestNeighbor", f"resize_nearest_neighbor_param {{ {options} {more} }}",
           ((2, 5, 7, 3),), oracle=resize_nearest)
      for options in ("output_height: 11 output_width: 13", "output_height: 3 output_width: 4",
                      "scale_height: 2 scale_width: 1.7", "output_height: 1 output_width: 2")
      for more in ("", 'data_format: "NCHW"', "align_corners: true")),
    Case("ResizeNearestNeighbor", "resize_nearest_neighbor_param { output_height: 10 "
         "output_width: 21 data_format: 'NCHW' }", (X,), label="in ncnn",
         oracle=lambda p, w, b: stacked(ncnn_layer("Interp", "0=1 3=10 4=21", b))),
    Case("UpsampleDarknet", "upsample_darknet_param { stride: 3 }", (X,), oracle=nearest(3, 3)),
    Case("UpsampleDarknet", bottoms=(X,), oracle=lambda p, w, b: [b[0]]),
    Case("Interp", "interp_param { height: 11 width: 13 }"),
    Case("Interp", "interp_param { height: 3 width: 13 }", (X,)),
    Case("Interp", "interp_param { zoom_factor: 2 }", (X,)),
    Case("Interp", "interp_param { zoom_factor: 3 }", (X,), oracle=interp_to(13, 19)),
    Case("Interp", "interp_param { shrink_factor: 2 }", ((2, 3, 11, 8),),
         oracle=interp_to(6, 4)),
    Case("Interp", "interp_param { shrink_factor: 2 zoom_factor: 3 }", ((2, 3, 11, 8),),
         oracle=interp_to(16, 10)),
    Case("Interp", "interp_param { zoom_factor: 2 height: 3 width: 3 }", (X,),
         oracle=interp_to(9, 13)),
    Case("Interp", "interp_param { height: 1 width: 1 }", (X,), oracle=interp_to(1, 1)),
    Case("Interp", "interp_param { height: 13 width: 3 pad_beg: -1 pad_end: -2 }",
         ((2, 3, 7, 11),), oracle=interp_to(13, 3, 1, 2)),
    Case("Interp", bottoms=(X, (2, 1, 13, 11)), oracle=interp_to(13, 11)),
    Case("Interp", "interp_param { height: 5 width: 7 }", (X,), label="same size"),
    Case("Upsample", bottoms=(X, X), oracle=by_mask(10, 14), makers=(values, places(140))),
    Case("Upsample", bottoms=(X,), oracle=nearest(2, 2)),
)  # fmt: skip

WITH_OPTIONS = (
    Case("Upsample", "upsample_param { scale: 3 }", (X,), oracle=nearest(3, 3)),
    Case("Upsample", "upsample_param { scale_h: 3 scale_w: 2 }", (X,), oracle=nearest(3, 2)),
    Case("Upsample", "upsample_param { upsample_h: 11 upsample_w: 13 }", (X, X),
         oracle=by_mask(11, 13), makers=(values, places(143))),
    Case("Upsample", "upsample_param { scale: 2 pad_out_h: true pad_out_w: true }", (X, X),
         oracle=by_mask(9, 13), makers=(values, places(117))),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", WITH_OPTIONS, ids=str)
def test_upsample_with_options(case: Case) -> None:
    check(case)


def test_upsample_puts_maxima_back_where_pooling_found_them() -> None:
    images = np.random.default_rng(3).normal(size=(2, 3, 10, 14)).astype(np.float32)
    pool = Case("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", tops=2)
    pooled, mask = pool.kind.run(pool.message(), [], [images])
    back = Case("Upsample", bottoms=(X, X))
    (top,) = back.kind.run(back.message(), [], [pooled, mask])
    blocks = images.reshape(2, 3, 5, 2, 7, 2)
    best = blocks == blocks.max(axis=(3, 5), keepdims=True)
    np.testing.assert_array_equal(top, np.where(best, blocks, 0).reshape(images.shape))


def test_a_mask_of_another_size_is_named() -> None:
    case = Case("Upsample", bottoms=(X, X))
    bottoms = [np.zeros(X, np.float32), np.full(X, 140, np.float32)]
    with pytest.raises(ModelError, match=r"'op'.*10x14 top.*are 140 to 140"):
        find_type("Upsample").run(case.message(), [], bottoms)


@pytest.mark.parametrize(
    ("case", "found"),
    [
        (Case("Interp"), "no size"),
        (Case("UpsampleDarknet", "upsample_darknet_param { stride: 0 }", (X,)), "at least 1"),
        (
            Case(
                "ResizeNearestNeighbor", "resize_nearest_neighbor_param { scale_height: 0.1 }", (X,)
            ),
            "is none",
        ),
        (
            Case(
                "ResizeNearestNeighbor", "resize_nearest_neighbor_param { scale_width: inf }", (X,)
            ),
            "is none",
        ),
        (
            Case(
                "ResizeNearestNeighbor",
                "resize_nearest_neighbor_param { data_format: 'NWHC' }",
                (X,),
            ),
            "'NHWC' or 'NCHW'",
        ),
        (Case("Interp", "interp_param { height: 3 width: 3 pad_beg: 1 }"), "only crops"),
        (Case("Interp", "interp_param { zoom_factor: 0 }"), "at least 1"),
        (Case("Interp", "interp_param { zoom_factor: 2 pad_beg: -7 }"), "no pixel"),
        (Case("Upsample", bottoms=(X, (2, 3, 5, 8))), "mask of its shape"),
        (Case("Upsample", "upsample_param { upsample_h: 10 }", (X, X)), "both or none"),
        (Case("Upsample", "upsample_param { scale_w: 3 }", (X,)), "scale_h and scale_w"),
    ],
    ids=str,
)
def test_impossible_shapes(case: Case, found: str) -> None:
    with pytest.raises(ShapeError, match=found):
        case.kind.shape(case.message(), case.bottoms)
