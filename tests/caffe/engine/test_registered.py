"""Layer types that a program registers: where they are needed, and what they may return."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.caffe.layers import registry
from int8calib.errors import ModelError, OptionError, ShapeError, UnsupportedLayerError

STRANGE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 3 dim: 5 } } }
layer { name: "twice" type: "%s" bottom: "data" top: "twice" }
layer { name: "relu" type: "ReLU" bottom: "twice" top: "out" }
layer { name: "other" type: "ReLU" bottom: "data" top: "other" }
"""


def test_unknown_types_fail_only_where_needed(tmp_path: Path) -> None:
    proto = tmp_path / "net.prototxt"
    proto.write_text(STRANGE % "NobodyKnows")
    net = int8calib.load_caffe(proto, None)
    x = np.arange(30, dtype=np.float32).reshape(1, 2, 3, 5) - 15
    np.testing.assert_array_equal(
        net.forward({"data": x}, outputs=["other"])["other"], np.maximum(x, 0)
    )
    with pytest.raises(
        UnsupportedLayerError,
        match=r"layer 'twice' \(NobodyKnows\) is of a type that does not run.*register_layer",
    ):
        net.forward({"data": x}, outputs=["out"])


def test_register_layer_adds_and_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from int8calib.caffe.layers import registry

    registry.type_names()
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    proto = tmp_path / "net.prototxt"
    proto.write_text(STRANGE % "TimesTwo")
    shape = lambda params, bottoms: [bottoms[0]]  # noqa: E731
    int8calib.register_layer("TimesTwo", lambda params, weights, bottoms: [bottoms[0] * 2], shape)
    net = int8calib.load_caffe(proto, None)
    x = np.arange(30, dtype=np.float32).reshape(1, 2, 3, 5) - 15
    np.testing.assert_array_equal(net.forward({"data": x})["out"], np.maximum(2 * x, 0))
    with pytest.raises(OptionError, match="registered already"):
        int8calib.register_layer("ReLU", lambda params, weights, bottoms: [bottoms[0]], shape)
    int8calib.register_layer(
        "ReLU", lambda params, weights, bottoms: [bottoms[0] + 1], shape, replace=True
    )
    fresh = int8calib.load_caffe(proto, None)
    np.testing.assert_array_equal(fresh.forward({"data": x})["out"], 2 * x + 1)


X = np.arange(30, dtype=np.float32).reshape(1, 2, 3, 5) - 15


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int8calib.Net]:
    """Makes a net whose second layer runs the given function, announced to keep the shape."""
    registry.type_names()
    monkeypatch.setattr(registry, "_types", dict(registry._types))

    def make(function: Callable) -> int8calib.Net:
        int8calib.register_layer("Own", function, lambda params, bottoms: [bottoms[0]])
        proto = tmp_path / "net.prototxt"
        proto.write_text(STRANGE % "Own")
        return int8calib.load_caffe(proto, None)

    return make


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p, w, b: [b[0][:, :1]], r"top 0 has shape \(1, 1, 3, 5\); .* \(1, 2, 3, 5\)"),
        (lambda p, w, b: [b[0], b[0]], "gives 2 tops; its shape rule announced 1"),
        (lambda p, w, b: [], "gives 0 tops; its shape rule announced 1"),
        (lambda p, w, b: [7], "top 0 is int; expected a numpy array of float32"),
        (lambda p, w, b: [b[0].astype(np.float64)], "top 0 is float64"),
        (lambda p, w, b: [b[0] > 0], "top 0 is bool"),
        (lambda p, w, b: None, "failed: TypeError: 'NoneType' object is not iterable"),
        (lambda p, w, b: w[0], "failed: IndexError"),
        (lambda p, w, b: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        (lambda p, w, b: b[0].fill(0), "failed: ValueError: .*read-only"),
    ],
)
def test_results_that_were_not_announced_are_named(
    registered: Callable, function: Callable, message: str
) -> None:
    with pytest.raises(ModelError, match=rf"net.prototxt: layer 'twice' \(Own\): .*{message}"):
        registered(function).forward({"data": X})


def test_own_errors_of_a_registered_layer_get_its_name(registered: Callable) -> None:
    def refuse(params, weights, bottoms):
        raise ShapeError("two of these are too few")

    with pytest.raises(ShapeError, match=r"layer 'twice' \(Own\): two of these are too few"):
        registered(refuse).forward({"data": X})


OWN = np.empty_like(X)


def hand_on(params, weights, bottoms):
    return [bottoms[0]]


def use_again(params, weights, bottoms):
    np.copyto(OWN, bottoms[0])
    return [OWN]


def turn(params, weights, bottoms):
    return [np.asfortranarray(bottoms[0])]


CHAIN = """
layer { name: "power" type: "Power" bottom: "twice" top: "power" power_param { shift: 3 } }
layer { name: "again" type: "Own" bottom: "power" top: "again" }
layer { name: "sum" type: "Eltwise" bottom: "again" bottom: "twice" bottom: "out" top: "sum" }
"""


@pytest.mark.parametrize("function", [hand_on, use_again, turn])
def test_bottoms_and_buffers_may_be_returned(registered: Callable, function: Callable) -> None:
    proto = Path(registered(function).graph.source)
    proto.write_text(STRANGE % "Own" + CHAIN)
    net = int8calib.load_caffe(proto, None)
    given, heard = X.copy(), {}
    made = net.forward({"data": given}, on_top=lambda n, b, top: heard.update({b: top.copy()}))
    np.testing.assert_array_equal(made["sum"], X + 3 + X + np.maximum(X, 0))
    np.testing.assert_array_equal(heard["again"], X + 3)
    np.testing.assert_array_equal(given, X)
