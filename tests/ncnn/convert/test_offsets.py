"""Blobs with an offset: which can have one, and what ncnn computes of them beside plain loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib.ncnn.convert.deploy import int8_model
from int8calib.ncnn.convert.offsets import OffsetGroup, offset_groups
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.param import NcnnLayer
from int8calib.table.model import CalibrationTable, LayerScales
from tests.ncnn.runtime import run_blobs

H, W = 11, 13
SCALES = {"first": 30.0, "depthwise": 20.0, "left": 17.0, "right": 17.0, "last": 11.0}
"""127 over the threshold of each layer's bottom."""


def convolution(
    name: str, bottom: str, inputs: int, outputs: int, kernel: int, *, group: int = 1, pad: int = 0
) -> NcnnLayer:
    rng = np.random.default_rng(sum(map(ord, name)))
    weights = rng.normal(0, 1, outputs * inputs // group * kernel**2).astype(np.float32)
    bias = rng.normal(0, 1, outputs).astype(np.float32)
    params = {0: outputs, 1: kernel, 4: pad, 5: 1, 6: weights.size, 9: 1}
    kind = "Convolution" if group == 1 else "ConvolutionDepthWise"
    params |= {} if group == 1 else {7: group}
    return NcnnLayer(kind, name, (bottom,), (name,), params, (weights, bias))


def model(channels: int) -> list[NcnnLayer]:
    """A depthwise layer that pads, two branches with a Clip and a ReLU, a maximum, a last layer."""
    right = convolution("right", "s0", channels, 5, 3, pad=1)
    return [
        NcnnLayer("Input", "data", (), ("data",), {0: W, 1: H, 2: 3}),
        convolution("first", "data", 3, channels, 1),
        convolution("depthwise", "first", channels, channels, 3, group=channels, pad=1),
        NcnnLayer("Split", "split", ("depthwise",), ("s0", "s1")),
        convolution("left", "s1", channels, 7, 1),
        right.with_params(p9=3, p10=(0.0, 6.0)),
        NcnnLayer("Concat", "cat", ("left", "right"), ("cat",)),
        NcnnLayer("Pooling", "pool", ("cat",), ("pool",), {0: 0, 1: 3, 2: 2, 3: 1, 5: 1}),
        convolution("last", "pool", 12, 5, 1).with_params(p9=0),
    ]


def table(layers: list[NcnnLayer]) -> CalibrationTable:
    rows = []
    for layer in layers:
        if layer.name not in SCALES:
            continue
        absmax = np.abs(layer.weights[0].reshape(layer.integer(0), -1)).max(axis=1)
        scales = (127 / absmax).astype(np.float32)
        rows.append(LayerScales(layer.name, scales, SCALES[layer.name], unsigned=True))
    return CalibrationTable((replace(rows[0], unsigned=False), *rows[1:]))


def rounded(values: np.ndarray) -> np.ndarray:
    return np.trunc(values + np.copysign(0.5, values))


def naive(layer: NcnnLayer, rows: LayerScales, bottom: np.ndarray) -> np.ndarray:
    """A layer whose bottom has the levels 0 to 254, or -127 to 127, by loops over its window."""
    step = rows.bottom_scale * (2 if rows.unsigned else 1)
    low, high = (0, 254) if rows.unsigned else (-127, 127)
    kernel, pad, group = layer.integer(1), layer.integer(4), layer.integer(7, 1)
    outputs = layer.integer(0)
    levels = np.pad(np.clip(rounded(bottom * step), low, high), ((0, 0), (pad, pad), (pad, pad)))
    weight = layer.weights[0].astype(np.float64).reshape(outputs, -1, kernel, kernel)
    weight = rounded(weight * rows.weight_scales[:, None, None, None])
    top = np.zeros((outputs, H - kernel + 1 + 2 * pad, W - kernel + 1 + 2 * pad))
    if layer.name == "last":
        top = np.zeros((outputs, *bottom.shape[1:]))
    for o, i, j in np.ndindex(top.shape):
        first = o * group // outputs * weight.shape[1]
        window = levels[first : first + weight.shape[1], i : i + kernel, j : j + kernel]
        top[o, i, j] = (weight[o] * window).sum() / step / rows.weight_scales[o]
    top += layer.weights[1][:, None, None]
    if layer.integer(9):
        top = np.clip(top, 0, 6 if layer.integer(9) == 3 else None)
    return top


def largest_of_windows(bottom: np.ndarray) -> np.ndarray:
    padded = np.pad(bottom, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    top = np.empty((len(bottom), (H + 1) // 2, (W + 1) // 2))
    for c, i, j in np.ndindex(top.shape):
        top[c, i, j] = padded[c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max()
    return top


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("channels", [5, 16])
def test_ncnn_has_255_levels_of_blobs_with_an_offset(
    channels: int, packing: bool, tmp_path: Path
) -> None:
    pytest.importorskip("ncnn")
    layers = model(channels)
    rows = table(layers)
    made = int8_model(NcnnModel(tuple(layers), "test"), rows).layers
    by_name = {layer.name: layer for layer in made}
    assert by_name["depthwise"].number(18, 0) == by_name["right"].number(18, 0) == 127
    x = np.random.default_rng(7).normal(0, 1, (3, H, W)).astype(np.float32)
    (found,) = run_blobs(made, {"data": x}, ["last"], packing=packing, folder=tmp_path)
    named = {layer.name: layer for layer in layers}

    def run(name: str, bottom: np.ndarray) -> np.ndarray:
        return naive(named[name], rows[name], bottom)

    below = run("depthwise", run("first", x))
    cat = np.concatenate([run("left", below), run("right", below)])
    expected = run("last", largest_of_windows(cat))
    # A float sum near the middle of two levels may fall to the other side, the more so with packing:
    # x86 then scales depthwise layers by an approximate reciprocal.
    most, typical = (0.3, 0.1) if packing and channels % 8 == 0 else (0.06, 1e-3)
    assert np.abs(found - expected).max() < most
    assert np.median(np.abs(found - expected)) < typical


def groups(*layers: NcnnLayer, int8: str) -> tuple[OffsetGroup, ...]:
    source = NcnnLayer("Input", "data", (), ("data",), {0: W, 1: H, 2: 3})
    return offset_groups((source, *layers), int8.split())


def test_readers_that_pad_need_negated_blobs() -> None:
    layers = model(5)
    assert offset_groups(layers, set(SCALES)) == (
        OffsetGroup(("first",), ("depthwise",), True),
        OffsetGroup(("depthwise",), ("left", "right"), True),
        OffsetGroup(("left", "right"), ("last",), False),
    )


FIRST = convolution("first", "data", 3, 5, 1)
SECOND = convolution("second", "first", 5, 7, 1)


@pytest.mark.parametrize(
    ("layers", "int8"),
    [
        ([FIRST, SECOND], "first"),
        ([FIRST.with_params(p9=0), SECOND], "first second"),
        ([FIRST.with_params(p9=2, p10=(0.1,)), SECOND], "first second"),
        ([FIRST.with_params(p9=3, p10=(-1.0, 6.0)), SECOND], "first second"),
        ([FIRST, SECOND.with_params(p18=0.5)], "first second"),
        (
            [
                FIRST,
                NcnnLayer("Split", "s", ("first",), ("a", "b")),
                replace(SECOND, bottoms=("a",)),
                NcnnLayer("Sigmoid", "other", ("b",), ("other",)),
            ],
            "first second",
        ),
        (
            [
                FIRST,
                NcnnLayer("Split", "s", ("first",), ("a", "output")),
                replace(SECOND, bottoms=("a",)),
            ],
            "first second",
        ),
        (
            [
                FIRST,
                NcnnLayer("Concat", "cat", ("first", "data"), ("cat",)),
                convolution("second", "cat", 8, 7, 1),
            ],
            "first second",
        ),
        (
            [
                FIRST,
                NcnnLayer("Pooling", "pool", ("first",), ("pool",), {0: 0, 1: 2, 2: 2}),
                convolution("second", "pool", 5, 7, 3, pad=1),
            ],
            "first second",
        ),
        (
            [
                FIRST,
                NcnnLayer("Pooling", "pool", ("first",), ("pool",), {0: 1, 1: 2, 2: 2}),
                convolution("second", "pool", 5, 7, 1),
            ],
            "first second",
        ),
    ],
)
def test_blobs_that_can_have_no_offset(layers: list[NcnnLayer], int8: str) -> None:
    assert groups(*layers, int8=int8) == ()


def test_one_reader_behind_one_maker_can() -> None:
    assert groups(FIRST, SECOND, int8="first second") == (
        OffsetGroup(("first",), ("second",), False),
    )
    assert groups(FIRST, SECOND, int8="second") == (OffsetGroup(("first",), ("second",), False),)


def test_a_blob_has_no_offset_where_one_of_its_readers_shall_not() -> None:
    layers = model(5)
    rows = table(layers)
    halves = [replace(row, unsigned=row.name == "left") for row in rows.layers]
    plain = [replace(row, unsigned=False) for row in rows.layers]
    found, expected = (
        int8_model(NcnnModel(tuple(layers), "test"), CalibrationTable(tuple(each))).layers
        for each in (halves, plain)
    )
    for a, b in zip(found, expected, strict=True):
        assert a.params == b.params
        for mine, theirs in zip(a.weights, b.weights, strict=True):
            np.testing.assert_array_equal(mine, theirs)
