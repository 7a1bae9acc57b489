"""Layers that move or rename axes, and Reorg, against OpenCV and loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from int8calib.errors import ShapeError
from tests.layer_cases import Case, check

X = (2, 5, 7, 11)


def reshaped(*shape):
    return lambda params, weights, bottoms: [bottoms[0].reshape(shape)]


def crop(params, weights, bottoms):
    param, (x, size) = params.crop_param, (bottoms[0], bottoms[1].shape)
    start = param.axis % x.ndim
    for axis in range(start, x.ndim):
        offset = param.offset[min(axis - start, len(param.offset) - 1)] if param.offset else 0
        x = np.take(x, range(offset, offset + size[axis]), axis=axis)
    return [x]


def sizes(*crops):
    return " ".join(f"crop_size: {crop}" for crop in crops)


def crop_center(*crops):
    """Every axis without its first and last entries, one of them at a time."""

    def oracle(params, weights, bottoms):
        (top,) = bottoms
        for axis, crop in enumerate(crops):
            for _ in range(crop):
                top = np.delete(top, [0, -1], axis=axis)
        return [top]

    return oracle


def tile(params, weights, bottoms):
    times = [1] * bottoms[0].ndim
    times[params.tile_param.axis] = params.tile_param.tiles
    return [np.tile(bottoms[0], times)]


def shuffle(params, weights, bottoms):
    (x,), group = bottoms, params.shuffle_channel_param.group
    top, each = np.empty_like(x), x.shape[1] // group
    for i, j in itertools.product(range(group), range(each)):
        top[:, j * group + i] = x[:, i * each + j]
    return [top]


def reorg(params, weights, bottoms):
    """darknet's loop over flat memory: in `reverse` it scatters, otherwise it gathers."""
    (x,), s = bottoms, params.reorg_param.stride
    n, channels, height, width = x.shape
    depth, flat, top = channels // s**2, x.reshape(-1), np.empty(x.size)
    for b, k, j, i in np.ndindex(*x.shape):
        here = i + width * (j + height * (k + channels * b))
        column, row = i * s + k // depth % s, j * s + k // depth // s
        there = column + width * s * (row + height * s * (k % depth + depth * b))
        if params.reorg_param.reverse:
            top[there] = flat[here]
        else:
            top[here] = flat[there]
    if params.reorg_param.reverse:
        return [top.reshape(n, depth, height * s, width * s)]
    return [top.reshape(n, channels * s**2, height // s, width // s)]


CASES = (
    *(Case("CropCenter", "crop_center_param { " + sizes(*crops) + " }", (X,),
           oracle=crop_center(*crops)) for crops in ((0, 0, 2, 2), (0, 1, 3, 0), (0, 2, 0, 5))),
    Case("CropCenter", "crop_center_param { " + sizes(1, 4) + " }", ((5, 13),),
         oracle=crop_center(1, 4)),
    Case("Flatten"),
    Case("Flatten", "flatten_param { axis: 2 }", oracle=reshaped(2, 5, 77)),
    Case("Flatten", "flatten_param { axis: 1 end_axis: 2 }", oracle=reshaped(2, 35, 11)),
    Case("Flatten", "flatten_param { axis: -3 end_axis: -2 }", oracle=reshaped(2, 35, 11)),
    Case("Reshape", "reshape_param { shape { dim: 0 dim: 11 dim: -1 dim: 5 } }"),
    Case("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }"),
    Case("Reshape", "reshape_param { shape { dim: 11 dim: 7 } axis: 2 }",
         oracle=reshaped(2, 5, 11, 7)),
    Case("Reshape", "reshape_param { shape { dim: 5 dim: -1 dim: 1 } axis: 1 num_axes: 2 }",
         oracle=reshaped(2, 5, 7, 1, 11)),
    Case("Reshape", "reshape_param { shape { dim: 1 } axis: -1 num_axes: 0 }",
         oracle=reshaped(2, 5, 7, 11, 1)),
    Case("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
    Case("Permute", "permute_param { order: 0 order: 3 order: 1 order: 2 }"),
    Case("Permute", "permute_param { order: 3 order: 1 }",
         oracle=lambda p, w, b: [np.einsum("nchw->wcnh", b[0])]),
    Case("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", ((2, 5, 1, 1),),
         label="already in order"),
    Case("Crop", bottoms=(X, (3, 2, 5, 6))),
    Case("Crop", "crop_param { axis: 2 offset: 1 offset: 4 }", (X, (3, 2, 5, 6))),
    Case("Crop", "crop_param { axis: 1 offset: 2 }", (X, (3, 2, 5, 6)), oracle=crop),
    Case("Crop", "crop_param { axis: -1 offset: 4 }", (X, (3, 2, 5, 6)), oracle=crop),
    Case("Crop", "crop_param { axis: 0 offset: 1 offset: 2 offset: 0 offset: 3 }",
         (X, (1, 2, 5, 6)), oracle=crop),
    Case("Crop", bottoms=(X, X), label="nothing to cut"),
    Case("Tile", "tile_param { tiles: 3 }", oracle=tile),
    Case("Tile", "tile_param { tiles: 2 axis: -1 }", oracle=tile),
    Case("Tile", "tile_param { tiles: 1 axis: 0 }", oracle=tile),
    Case("ShuffleChannel", "shuffle_channel_param { group: 2 }", ((2, 6, 7, 11),),
         oracle=shuffle),
    Case("ShuffleChannel", "shuffle_channel_param { group: 5 }", ((2, 15, 7, 11),),
         oracle=shuffle),
    Case("ShuffleChannel", oracle=shuffle),
    Case("Reorg", "reorg_param { stride: 2 }", ((2, 12, 6, 10),), oracle=reorg),
    Case("Reorg", "reorg_param { stride: 3 }", ((2, 9, 3, 15),), oracle=reorg),
    Case("Reorg", "reorg_param { stride: 2 reverse: true }", ((2, 12, 7, 11),), oracle=reorg),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    ("case", "found"),
    [
        (Case("Reshape", "reshape_param { shape { dim: 3 dim: -1 } }"), "do not fit"),
        (Case("Reshape", "reshape_param { shape { dim: 2 } axis: 5 }"), "pass"),
        (Case("Flatten", "flatten_param { axis: 3 end_axis: 1 }"), "behind"),
        (Case("Permute", "permute_param { order: 1 order: 1 }"), "distinct"),
        (Case("Crop", bottoms=(X, (2, 5, 7, 12))), "too short"),
        (Case("Crop", "crop_param { offset: 1 offset: 1 offset: 1 }", (X, X)), "3 offsets"),
        (Case("Tile"), "at least 1"),
        (Case("CropCenter", "crop_center_param { crop_size: 1 }", (X,)), "expected one each"),
        (Case("CropCenter", "crop_center_param { " + sizes(0, 0, 4, 0) + " }", (X,)), "nothing"),
        (
            Case("CropCenter", "crop_center_param { " + sizes(0, 0, 0, 2**32 - 1) + " }", (X,)),
            "nothing",
        ),
        (Case("ShuffleChannel", "shuffle_channel_param { group: 2 }"), "groups"),
        (Case("Reorg", "reorg_param { stride: 2 }"), "multiple"),
    ],
    ids=str,
)
def test_impossible_shapes(case: Case, found: str) -> None:
    with pytest.raises(ShapeError, match=found):
        case.kind.shape(case.message(), case.bottoms)
