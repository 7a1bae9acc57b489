"""Layer types that an embedding program adds: their options, and what they promise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers import registry
from int8calib.errors import ModelError, OptionError, ShapeError

X = (2, 3, 5, 7)
NET = """input: "data" input_shape { dim: 1 dim: 3 dim: 5 dim: 7 }
layer { name: "odd" type: "Odd" bottom: "data" top: "odd" odd_param { %s } }
"""


@pytest.fixture(autouse=True)
def types(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.type_names()
    monkeypatch.setattr(registry, "_types", dict(registry._types))


def load(folder: Path, options: str = "") -> int8calib.Net:
    proto = folder / "net.prototxt"
    proto.write_text(NET % options, encoding="utf-8")
    return int8calib.load_caffe(proto, None)


def same(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return [bottoms[0]]


def images() -> Array:
    return np.random.default_rng(4).normal(size=X).astype(np.float32)


def test_options_that_the_schema_lacks_reach_the_functions(tmp_path: Path) -> None:
    def option(params: LayerParameter, name: str) -> list[str]:
        (fields,) = caffe_proto.unknown_fields(params)["odd_param"]
        assert isinstance(fields, dict)
        return [value for value in fields.get(name, []) if isinstance(value, str)]

    def shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
        cut = [int(value) for value in option(params, "cut")]
        return [tuple(n - c for n, c in zip(bottoms[0], cut, strict=True))]

    def run(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]):
        _, channels, height, width = shape(params, [bottoms[0].shape])[0]
        (scale,) = option(params, "scale")
        sign = -1 if option(params, "mode") == ["NEGATIVE"] else 1
        return [bottoms[0][:, :channels, :height, :width] * np.float32(sign * float(scale))]

    int8calib.register_layer("Odd", run, shape)
    net = load(tmp_path, 'cut: 0 cut: 1 cut: 2 cut: 3 scale: 0.5 mode: NEGATIVE note: "x y"')
    (top,) = net.forward({"data": images()}).values()
    np.testing.assert_array_equal(top, images()[:, :2, :3, :4] * np.float32(-0.5))


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (lambda x: [x[:, :2]], r"top 0 has shape \(2, 2, 5, 7\).*announced \(2, 3, 5, 7\)"),
        (lambda x: [x.astype(np.float64)], "top 0 is float64; expected a numpy array of float32"),
        (lambda x: [x.tolist()], "top 0 is list"),
        (lambda x: [x, x], "gives 2 tops; its shape rule announced 1"),
        (lambda x: [], "gives 0 tops"),
        (lambda x: [x[0]], "top 0 has shape"),
    ],
)
def test_a_top_that_was_not_announced_is_named(result, found: str, tmp_path: Path) -> None:
    int8calib.register_layer("Odd", lambda params, weights, bottoms: result(bottoms[0]), same)
    net = load(tmp_path)
    with pytest.raises(ModelError, match=rf"layer 'odd' \(Odd\): {found}"):
        net.forward({"data": images()})


def test_what_a_function_refuses_names_the_layer(tmp_path: Path) -> None:
    def refuse(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]):
        raise ModelError("a value below 0")

    int8calib.register_layer("Odd", refuse, same)
    net = load(tmp_path)
    with pytest.raises(ModelError, match=r"layer 'odd' \(Odd\): a value below 0"):
        net.forward({"data": images()})

    def misfit(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
        raise ShapeError("too wide")

    int8calib.register_layer("Odd", refuse, misfit, replace=True)
    with pytest.raises(ShapeError, match=r"layer 'odd' \(Odd\): too wide"):
        load(tmp_path).forward({"data": images()})


def test_a_top_may_be_a_bottom_and_of_any_layout(tmp_path: Path) -> None:
    """The engine reuses memory; what a function hands back must not be lost with it."""
    int8calib.register_layer("Odd", lambda params, weights, bottoms: [bottoms[0]], same)
    int8calib.register_layer(
        "Turned",
        lambda params, weights, bottoms: [np.asfortranarray(bottoms[0] * 2)],
        same,
    )
    proto = tmp_path / "net.prototxt"
    steps = [("ReLU", "data", "a"), ("Odd", "a", "b"), ("Power", "a", "c"), ("ReLU", "c", "d"),
             ("Turned", "b", "e"), ("Flatten", "e", "f")]  # fmt: skip
    text = NET.splitlines()[0] + "".join(
        f'layer {{ name: "{top}" type: "{kind}" bottom: "{bottom}" top: "{top}" '
        f"{'power_param { shift: -9 }' if kind == 'Power' else ''} }}\n"
        for kind, bottom, top in steps
    )
    proto.write_text(text, encoding="utf-8")
    tops = int8calib.load_caffe(proto, None).forward({"data": images()})
    np.testing.assert_array_equal(tops["f"], np.maximum(images(), 0).reshape(2, -1) * 2)


def test_a_function_cannot_write_its_bottoms(tmp_path: Path) -> None:
    def spoil(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]):
        bottoms[0][:] = 0
        return [bottoms[0]]

    int8calib.register_layer("Odd", spoil, same)
    with pytest.raises(ModelError, match=r"layer 'odd' \(Odd\): .*read-only"):
        load(tmp_path).forward({"data": images()})


def test_a_taken_name_is_refused_unless_replaced() -> None:
    def run(params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]):
        return [bottoms[0] + 1]

    with pytest.raises(OptionError, match="'ReLU' is registered already"):
        int8calib.register_layer("ReLU", run, same)
    int8calib.register_layer("ReLU", run, same, replace=True)
    assert registry.find_type("ReLU").outside


@pytest.mark.parametrize(
    "rule",
    [
        lambda params, bottoms: None,
        lambda params, bottoms: ["abc"],
        lambda params, bottoms: [(1.5, 2)],
        lambda params, bottoms: bottoms[0] + "a",
    ],
)
def test_a_shape_rule_that_gives_no_shapes_is_named(rule, tmp_path: Path) -> None:
    int8calib.register_layer("Odd", lambda params, weights, bottoms: [bottoms[0]], rule)
    message = r"layer 'odd' \(Odd\): the shape rule registered for it gives no list of shapes"
    with pytest.raises(ShapeError, match=message):
        load(tmp_path).forward({"data": images()})


@pytest.mark.parametrize(
    ("name", "run", "shape"), [("", same, same), (None, same, same), ("A", 5, same), ("A", same, 5)]
)
def test_what_is_no_layer_type_is_not_registered(name, run, shape) -> None:
    with pytest.raises(OptionError, match="layer type"):
        int8calib.register_layer(name, run, shape)
