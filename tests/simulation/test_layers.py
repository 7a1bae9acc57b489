"""INT8 layers against loops over Python integers, written from ncnn's definition."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.layers.registry import find_type
from int8calib.errors import TableError, WeightsError
from int8calib.simulation.arithmetic import BLOCK, dequantize, quantize
from int8calib.simulation.layers import Int8Weights, sums_fit
from int8calib.table.model import CalibrationTable, LayerScales
from tests.generated import make_model

HEAD = 'layer { name: "data" type: "Input" top: "data" input_param { shape { %s } } }\n'
SHAPE = "dim: 1 dim: 6 dim: 7 dim: 11"
KINDS = {
    "plain": 'type: "Convolution" convolution_param { num_output: 5 kernel_size: 3 pad: 1 }',
    "odd": 'type: "Convolution" convolution_param { num_output: 5 kernel_h: 2 kernel_w: 5 stride: 2 '
    "pad_h: 1 pad_w: 3 bias_term: false }",
    "dilated": 'type: "Convolution" convolution_param { num_output: 5 kernel_size: 3 dilation: 2 pad: 2 }',
    "pointwise": 'type: "Convolution" convolution_param { num_output: 5 kernel_size: 1 }',
    "grouped": 'type: "Convolution" convolution_param { num_output: 10 group: 2 kernel_size: 3 }',
    "sides": 'type: "Convolution" convolution_param { num_output: 5 kernel_size: 3 stride: 2 '
    "pad_l: 2 pad_r: 1 pad_t: 0 pad_b: 3 }",
    "depthwise_sides": 'type: "ConvolutionDepthwise" convolution_param { num_output: 6 '
    "kernel_size: 3 stride: 2 pad_l: 0 pad_r: 1 pad_t: 0 pad_b: 1 }",
    "depthwise": 'type: "ConvolutionDepthwise" convolution_param { num_output: 6 kernel_size: 3 '
    "stride: 2 pad: 1 }",
    "fc": 'type: "InnerProduct" inner_product_param { num_output: 7 }',
    "fc_transposed": 'type: "InnerProduct" inner_product_param { num_output: 7 transpose: true }',
    "fc_axis": 'type: "InnerProduct" inner_product_param { num_output: 7 axis: 2 }',
}
GROUPS = {"grouped": 2, "depthwise": 6, "depthwise_sides": 6}


def away(value: float) -> int:
    """Round half away from zero, clamp to 127."""
    return int(max(-127, min(127, math.copysign(math.floor(abs(value) + 0.5), value))))


def levels(values: np.ndarray, scale: np.float32) -> np.ndarray:
    rounded = [away(float(np.float32(v) * np.float32(scale))) for v in values.reshape(-1)]
    return np.array(rounded, dtype=object).reshape(values.shape)


def rescaled(total: int, bottom: np.float32, weight: np.float32, bias: np.float32) -> np.float32:
    """sum / (bottom scale x weight scale) + bias, in exact arithmetic but for what ncnn rounds."""
    factor = np.float32(1) / (bottom * weight)
    return np.float32(
        float(Fraction(float(np.float32(total))) * Fraction(float(factor)) + Fraction(float(bias)))
    )


def naive_convolution(layer, x, table):  # type: ignore[no-untyped-def]
    param = layer.params.convolution_param
    weight = layer.weights[0]
    bias = layer.weights[1] if len(layer.weights) > 1 else np.zeros(len(weight), np.float32)
    rows = table.weight_scales
    outputs, per_group, kh, kw = weight.shape
    group = x.shape[1] // per_group
    top, left = (
        (param.pad_h, param.pad_w)
        if param.pad_h
        else (*(param.pad or [0]), *(param.pad or [0]))[:2]
    )
    bottom, right = top, left
    if param.pad_b:
        top, bottom, left, right = param.pad_t, param.pad_b, param.pad_l, param.pad_r
    stride, dilation = (param.stride or [1])[0], (param.dilation or [1])[0]
    q = levels(x, np.float32(table.bottom_scale))
    size = x.shape[2] + top + bottom, x.shape[3] + left + right
    padded = np.zeros((*x.shape[:2], *size), dtype=object)
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = q
    height = (padded.shape[2] - dilation * (kh - 1) - 1) // stride + 1
    width = (padded.shape[3] - dilation * (kw - 1) - 1) // stride + 1
    result = np.zeros((len(x), outputs, height, width), np.float32)
    for o in range(outputs):
        g = o // (outputs // group)
        scale = np.float32(rows[g] if len(rows) == group and group > 1 else rows[o])
        w = levels(weight[o], scale)
        for n, i, j in product(range(len(x)), range(height), range(width)):
            total = 0
            for c, r, s in product(range(per_group), range(kh), range(kw)):
                pixel = padded[
                    n, g * per_group + c, i * stride + r * dilation, j * stride + s * dilation
                ]
                total += pixel * w[c, r, s]
            result[n, o, i, j] = rescaled(total, np.float32(table.bottom_scale), scale, bias[o])
    return result


def naive_inner_product(layer, x, table):  # type: ignore[no-untyped-def]
    param = layer.params.inner_product_param
    weight = layer.weights[0].T if param.transpose else layer.weights[0]
    lead = x.shape[: param.axis]
    q = levels(x, np.float32(table.bottom_scale)).reshape(math.prod(lead), -1)
    top = np.zeros((len(q), len(weight)), np.float32)
    for o, scale in enumerate(table.weight_scales):
        w = levels(weight[o], np.float32(scale))
        for m, row in enumerate(q):
            total = sum(a * b for a, b in zip(row, w, strict=True))
            bias = layer.weights[1][o]
            top[m, o] = rescaled(total, np.float32(table.bottom_scale), np.float32(scale), bias)
    return top.reshape(*lead, -1)


def one_layer(tmp_path: Path, kind: str) -> int8calib.Net:
    text = HEAD % SHAPE + f'layer {{ name: "a" bottom: "data" top: "a" {KINDS[kind]} }}'
    return int8calib.load_caffe(*make_model(tmp_path, text))


def some_table(net: int8calib.Net, kind: str, bottom_scale: float = 0.71) -> CalibrationTable:
    """Weight scales that clip some weights and leave others few levels."""
    weight = net.graph.layers[1].weights[0]
    if "transposed" in kind:
        weight = weight.T
    rows = GROUPS.get(kind, len(weight))
    scales = np.random.default_rng(2).uniform(20, 400, rows).astype(np.float32)
    return CalibrationTable((LayerScales("a", scales, bottom_scale),))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_their_integer_definition(kind: str, tmp_path: Path) -> None:
    net = one_layer(tmp_path, kind)
    table = some_table(net, kind)
    x = np.random.default_rng(3).normal(0, 90, (2, 6, 7, 11)).astype(np.float32)
    naive = naive_inner_product if kind.startswith("fc") else naive_convolution
    expected = naive(net.graph.layers[1], x, table.layers[0])
    simulated = int8calib.simulate(net, table)
    (found,) = simulated.forward({"data": x}).values()
    np.testing.assert_array_equal(found, expected)
    layer = simulated.graph.layers[1]
    (plain,) = find_type(layer.type).run(layer.params, layer.weights, [x])
    np.testing.assert_array_equal(plain, expected)


@pytest.mark.parametrize(
    ("value", "level"),
    [
        *((0.5, 1), (-0.5, -1), (1.5, 2), (2.5, 3), (-2.5, -3), (126.5, 127), (-126.5, -127)),
        *((0.49, 0), (-0.49, 0), (126.49, 126), (127.5, 127), (-127.5, -127), (-128.0, -127)),
        *((1e30, 127), (-1e30, -127), (np.inf, 127), (0.0, 0), (-0.0, 0)),
    ],
)
def test_rounding_is_half_away_from_zero_within_127(value: float, level: int) -> None:
    values = np.array([value], np.float32)
    out = np.empty(1, np.float32)
    quantize(values, np.float32(1), out)
    assert out[0] == level


@pytest.mark.parametrize("size", [1, 997, BLOCK, 2 * BLOCK + 13])
def test_blocks_leave_nothing_out(size: int) -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0, 60, size).astype(np.float32)
    found = np.full_like(values, np.nan)
    quantize(values, np.float32(1.3), found)
    products = values * np.float32(1.3)
    expected = [min(127, int(abs(p) + np.float32(0.5))) * (1 if p > 0 else -1) for p in products]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("rows", "values"), [(3, 31), (1031, 17), (5, BLOCK + 7)])
def test_dequantizing_rounds_once(rows: int, values: int) -> None:
    rng = np.random.default_rng(6)
    sums = rng.integers(-(1 << 23), 1 << 23, (rows, values)).astype(np.float32)
    factors, bias = (rng.normal(0, 1, rows).astype(np.float32) for _ in range(2))
    exact = sums.astype(np.longdouble) * factors[:, None] + bias[:, None].astype(np.longdouble)
    dequantize(sums, factors, bias)
    # Rounding the float64 sum may differ from rounding the exact one in the rarest of cases.
    assert (sums != exact.astype(np.float32)).mean() < 1e-4


@pytest.mark.parametrize("source", ["InnerProduct", "Convolution"])
def test_sums_beyond_float32_are_exact(source: str) -> None:
    """Rows of 2003 large odd levels reach 3e7, where float32 knows even numbers only."""
    rng = np.random.default_rng(7)
    conv = source == "Convolution"
    weight = rng.choice([127, 125, 123], (3, 2003)).astype(np.float32)
    bottom = rng.choice([127, 125, 121], (2, 2003)).astype(np.float32)
    exact = bottom.astype(np.int64) @ weight.T.astype(np.int64)
    assert exact.min() > 1 << 24
    expected = exact.astype(np.float32)
    one_by_one = np.zeros((2, 3), np.float32)
    for k in range(2003):
        one_by_one += np.outer(bottom[:, k], weight[:, k])
    assert (one_by_one != expected).any(), "float32 sums would do: the case proves nothing"
    params = _params(conv)
    int8 = Int8Weights(
        weight.reshape(3, 2003, 1, 1) if conv else weight,
        np.ones(3, np.float32),
        np.zeros(3, np.float32),
        np.ones(1, np.float32),
        np.array([-127, 127], np.float32),
    )
    shape = (2, 2003, 1, 1) if conv else (2, 2003)
    kind = find_type(f"Int8{source}")
    fast_path = kind.plan(params, int8.arrays(), [shape], lambda s: np.empty(s, np.float32))
    top = np.empty((2, 3, 1, 1) if conv else (2, 3), np.float32)
    fast_path([bottom.reshape(shape)], [top])
    np.testing.assert_array_equal(top.reshape(2, 3), expected)
    assert not sums_fit(weight)
    assert sums_fit(weight[:, :1000])


def _params(conv: bool):  # type: ignore[no-untyped-def]
    from caffe_proto import parse_prototxt

    text = (
        'layer { name: "a" type: "Convolution" convolution_param { num_output: 3 kernel_size: 1 } }'
        if conv
        else 'layer { name: "a" type: "InnerProduct" inner_product_param { num_output: 3 } }'
    )
    return parse_prototxt(text, "net.prototxt").layer[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (LayerScales("b", np.ones(5, np.float32), 1.0), "another model"),
        (LayerScales("a", np.ones(4, np.float32), 1.0), "needs 5"),
        (LayerScales("a", np.ones(5, np.float32), math.nan), "bottom scale"),
        (LayerScales("a", np.ones(5, np.float32), 0.0), "bottom scale"),
        (LayerScales("a", np.full(5, np.inf, np.float32), 1.0), "weight scale"),
        (LayerScales("a", np.full(5, 1e-30, np.float32), 1e-30), "range of float32"),
        (LayerScales("a", np.full(5, -1e30, np.float32), 1e30), "range of float32"),
    ],
)
def test_a_table_of_another_model_is_refused(rows: LayerScales, words: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=words):
        int8calib.simulate(one_layer(tmp_path, "plain"), CalibrationTable((rows,)))


def test_a_channel_with_scale_zero_gives_its_bias(tmp_path: Path) -> None:
    net = one_layer(tmp_path, "plain")
    scales = np.array([50, 0, 50, 50, 50], np.float32)
    table = CalibrationTable((LayerScales("a", scales, 0.5),))
    x = np.random.default_rng(3).normal(0, 90, (1, 6, 7, 11)).astype(np.float32)
    (top,) = int8calib.simulate(net, table).forward({"data": x}).values()
    assert (top[0, 1] == net.graph.layers[1].weights[1][1]).all()
    assert top[0, 0].std() > 0


def test_a_report_that_means_nothing_is_refused(tmp_path: Path) -> None:
    net = one_layer(tmp_path, "plain")
    table = some_table(net, "plain")
    wrong = CalibrationTable(table.layers, meta={"options": {"fold_bn": "false"}})
    with pytest.raises(TableError, match="expected true or false"):
        int8calib.simulate(net, wrong)


def test_without_weights_there_is_no_int8(tmp_path: Path) -> None:
    net = one_layer(tmp_path, "plain")
    bare = int8calib.load_caffe(tmp_path / "net.prototxt", None)
    with pytest.raises(WeightsError, match="layer a: has no weights"):
        int8calib.simulate(bare, some_table(net, "plain"))


CHAIN = """
    layer { name: "d" type: "Input" top: "d" input_param { shape: { dim: [1, 3, 5, 7] } } }
    layer { name: "a" type: "Convolution" bottom: "d" top: "a"
            convolution_param { num_output: 5 kernel_size: 1 } }
    layer { name: "b" type: "ReLU" bottom: "a" top: "b" }
    layer { name: "c" type: "Convolution" bottom: "b" top: "c"
            convolution_param { num_output: 3 kernel_size: 1 } }"""
STRANGERS = {
    "before it, and itself": ('"ReLU"', '"Odd"', "num_output: 3", "num_output: 3 group: 2"),
    "the type of another model": ('"c" type: "Convolution"', '"c" type: "TanH"'),
    "a type that does not run": ('"c" type: "Convolution"', '"c" type: "Odd"'),
}
MESSAGES = {
    "the type of another model": "'c', which is of type TanH and no Convolution",
    "a type that does not run": r"'c', which cannot run \(layer 'c' \(Odd\) is of a type that does",
}


@pytest.mark.parametrize("what", STRANGERS)
def test_rows_of_a_layer_that_cannot_run(what: str, tmp_path: Path) -> None:
    """What stands in its way is told, not only that the table may be another model's."""
    proto, model = make_model(tmp_path, CHAIN)
    text = CHAIN
    for old, new in zip(STRANGERS[what][::2], STRANGERS[what][1::2], strict=True):
        text = text.replace(old, new)
    proto.write_text(text)
    net = int8calib.load_caffe(proto, model)
    rows = (LayerScales(name, np.full(5, 30.0, np.float32), 0.5) for name in "ac")
    table = CalibrationTable(tuple(rows))
    x = np.random.default_rng(3).normal(0, 90, (1, 3, 5, 7)).astype(np.float32)
    if what in MESSAGES:
        with pytest.raises(TableError, match=MESSAGES[what]):
            int8calib.analyze(net, table, lambda: [{"d": x}])
        return
    found = int8calib.analyze(net, table, lambda: [{"d": x}])
    assert [layer.name for layer in found.layers] == ["a"]
    assert found.notes[-1].startswith("layer 'c' cannot run and is not measured: layer ")
