"""Whole ncnn models in the numpy engine: blob by blob against ncnn's runtime, and what is refused."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import int8calib
from int8calib.caffe.engine.run import load_caffe
from int8calib.caffe.network.shapes import reach
from int8calib.errors import ModelError, ModelFileError, OptionError, ShapeError
from int8calib.ncnn.convert.network import convert_network
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.model import NcnnModel, load_model, save_model
from int8calib.ncnn.optimize import optimize_model
from int8calib.ncnn.param import parse_param
from int8calib.ncnn.translate.network import TranslatedNet, obstacles, translate_model
from tests.conftest import SHARED
from tests.ncnn.runtime import run_blobs

NCNN = {
    "pnnx_small": ("small", "in0", (3, 73, 59)),
    "realesr-animevideov3-x2": ("realesr-animevideov3-x2", "data", (3, 37, 41)),
    "waifu2x_cunet_noise0": ("noise0_model", "Input1", (3, 84, 96)),
}
CONVERTED = ("lenet_everpeace", "mtcnn_det2", "yufacedet_v1", "ultralight_rfb320", "wechat_sr")
TOLERANCE = 1e-4


def deviation(own: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the absmax."""
    assert own.shape == expected.shape
    return float(np.abs(own - expected).max(initial=0) / np.abs(expected).max(initial=1e-30))


def box_deviation(own: np.ndarray, expected: np.ndarray) -> float:
    """That of boxes, each against the nearest: ours begin with the image's number, and go by class.

    Boxes of nearly one score stand in any order.
    """
    if not expected.size:
        assert own[0, 0, 0, 1] == -1
        return 0.0
    rows = own[0, 0, :, 1:]
    assert len(rows) == len(expected)
    return float(max(np.abs(rows - row).max(axis=1).min() for row in expected))


def worst_deviation(model: NcnnModel, inputs: dict[str, np.ndarray], folder: Path) -> float:
    """The largest deviation of a blob from ncnn's."""
    net = translate_model(model, {name: (1, *x.shape) for name, x in inputs.items()})
    assert not obstacles(net)
    layers = [layer for layer in model.layers if layer.type not in ("Input", "Split")]
    blobs = [top for layer in layers for top in layer.tops]
    found = net.forward({name: x[None] for name, x in inputs.items()}, outputs=blobs)
    expected = dict(zip(blobs, run_blobs(model.layers, inputs, blobs, folder=folder), strict=True))
    return max(
        box_deviation(found[top], expected[top])
        if layer.type == "DetectionOutput"
        else deviation(found[top][0], expected[top])
        for layer in layers
        for top in layer.tops
    )


@pytest.mark.parametrize("name", NCNN)
def test_real_models_give_what_ncnn_gives(name: str, shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    stem, blob, shape = NCNN[name]
    folder = shared / "ncnn_models" / name
    model = load_model(folder / f"{stem}.param", folder / f"{stem}.bin")
    image = np.random.default_rng(3).random(shape, dtype=np.float32)
    assert worst_deviation(model, {blob: image}, tmp_path) < TOLERANCE


def converted_model(name: str) -> tuple[NcnnModel, dict[str, np.ndarray]]:
    """A Caffe model as an ncnn model, and one image for it."""
    info = json.loads((SHARED / "golden/ncnn_models/caffe" / name / "info.json").read_text())
    folder = SHARED / "models" / name
    shapes = {"data": (1, 1, 28, 28)} if name == "lenet_everpeace" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = load_caffe(
            folder / info["prototxt"], folder / info["caffemodel"], input_shapes=shapes
        )
    rng = np.random.default_rng(5)
    images = {
        blob: rng.uniform(-1, 1, shape[1:]).astype(np.float32)
        for blob, shape in net.input_shapes.items()
    }
    return convert_network(net), images


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("name", CONVERTED)
def test_converted_models_give_what_ncnn_gives(
    name: str, optimized: bool, shared: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ncnn")
    model, images = converted_model(name)
    if optimized:
        model = NcnnModel(optimize_model(model.layers), model.source)
    assert worst_deviation(model, images, tmp_path) < TOLERANCE


def parsed(*lines: str) -> NcnnModel:
    """A model without weights from the lines of its layers."""
    text = "\n".join(["7767517", f"{len(lines)} 99", *lines])
    return NcnnModel(parse_param(text, "net.param"), "net.param")


def test_a_layer_without_equivalent_is_named() -> None:
    net = translate_model(
        parsed(
            "Input in 0 1 in 0=13 1=11 2=7",
            "ReLU relu 1 1 in a",
            "GridSample warp 1 1 a b",
            "ReLU last 1 1 b out",
        )
    )
    (line,) = obstacles(net)
    assert "'warp'" in line
    assert "(GridSample) cannot run: the numpy engine has no such layer" in line
    assert [str(blob) for blob in reach(net.graph, net.input_shapes).lost] == ["b", "out"]
    top = net.forward({"in": np.full((2, 7, 11, 13), -1, np.float32)}, outputs=["a"])["a"]
    assert not top.any()


def test_an_option_without_equivalent_is_named() -> None:
    net = translate_model(
        parsed("Input in 0 1 in 0=13 1=11 2=7", "Interp x 1 1 in out 0=4 1=2.0 2=2.0")
    )
    assert obstacles(net) == ("layer 'x' (Interp) cannot run: resize_type 4 is not known",)


def test_a_size_that_is_not_in_the_model_must_be_given() -> None:
    model = parsed("Input in 0 1 in", "ReLU relu 1 1 in out")
    with pytest.raises(ShapeError, match=r"size of input 'in' .* --input-shape in=1,C,H,W"):
        translate_model(model)
    assert translate_model(model, {"in": (1, 3, 5, 7)}).input_shapes == {"in": (1, 3, 5, 7)}
    with pytest.raises(OptionError, match="'other' is no input; the inputs are in"):
        translate_model(model, {"other": (1, 3, 5, 7)})


def test_a_blob_that_nobody_makes_is_refused() -> None:
    with pytest.raises(ModelFileError, match="no layer before it makes its bottom 'b'"):
        translate_model(parsed("Input in 0 1 in 0=7", "ReLU relu 1 1 b out"))


def test_a_constant_takes_part_for_each_image(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    constant = np.arange(7, dtype=np.float32)
    plain = parsed(
        "Input in 0 1 in 0=13 1=11 2=7",
        "MemoryData m 0 1 m 0=1 1=1 2=7",
        "BinaryOp mul 2 1 in m out 0=2",
    )
    layers = tuple(
        replace(layer, weights=(constant,)) if layer.type == "MemoryData" else layer
        for layer in plain.layers
    )
    model = NcnnModel(layers, "net.param")
    images = np.random.default_rng(1).standard_normal((3, 7, 11, 13)).astype(np.float32)
    found = translate_model(model).forward({"in": images})["out"]
    for image, own in zip(images, found, strict=True):
        (expected,) = run_blobs(model.layers, {"in": image}, ["out"], folder=tmp_path)
        assert deviation(own, expected) < TOLERANCE


def test_the_engine_is_numpy_where_every_layer_has_an_equivalent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "net.param", tmp_path / "net.bin"

    def written(*lines: str) -> tuple[Path, Path]:
        save_model(parsed("Input in 0 1 in 0=13 1=11 2=7", *lines).layers, *files)
        return files

    relu, warp = "ReLU relu 1 1 in a", "CumulativeSum sum 1 1 a out 0=1"
    assert isinstance(int8calib.load_ncnn(*written(relu)), TranslatedNet)
    partly = int8calib.load_ncnn(*written(relu, warp), engine="numpy")
    assert len(obstacles(partly)) == 1
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(
        OptionError, match=r"\(CumulativeSum\) cannot .* in ncnn itself, but the package ncnn"
    ):
        int8calib.load_ncnn(*files)
    monkeypatch.undo()
    pytest.importorskip("ncnn")
    assert isinstance(int8calib.load_ncnn(*files), int8calib.NcnnNet)


CONV = "Convolution {0} 1 1 {1} {0} 0=3 1=1 6={2}"
MODEL = ("Input in 0 1 in 0=13 1=11 2=7", CONV.format("a", "in", 21))


def weighted(*lines: str) -> NcnnModel:
    """A model with weights from the lines of its layers."""
    model, rng = parsed(*lines), np.random.default_rng(11)
    layers = (
        replace(
            layer,
            weights=tuple(rng.normal(size=blob.size).astype("f4") for blob in blob_layout(layer)),
        )
        for layer in model.layers
    )
    return replace(model, layers=tuple(layers))


def behind(*between: str) -> NcnnModel:
    """A convolution, the layer `x` of some lines that read it, and a convolution behind."""
    return weighted(*MODEL, *between, CONV.format("b", "x", 9))


def test_layers_behind_one_that_cannot_run_stay_in_float_with_a_warning() -> None:
    net = translate_model(behind("Eltwise x 2 1 a a x 0=9"))
    given = np.random.default_rng(7).normal(size=(3, 7, 11, 13)).astype(np.float32)
    done = int8calib.calibrate(net, lambda: [{"in": given}])
    assert [row.name for row in done.table.layers] == ["a"]
    assert any("b stays in float: layer 'x' (Eltwise) cannot run" in text for text in done.warnings)


def test_a_layer_that_cannot_run_itself_is_in_the_warning_too() -> None:
    net = translate_model(behind("ConvolutionDepthWise x 1 1 a x 0=3 1=1 6=3 7=2"))
    given = np.random.default_rng(7).normal(size=(3, 7, 11, 13)).astype(np.float32)
    (told,) = (
        text
        for text in int8calib.calibrate(net, lambda: [{"in": given}]).warnings
        if "in float" in text
    )
    assert told.startswith("x, b stay in float: layer 'x' (ConvolutionDepthWise) cannot run")


def test_what_stands_in_the_way_is_said_where_nothing_is_left() -> None:
    net = translate_model(weighted("Input in 0 1 in 0=13 1=11 2=7", CONV.format("a", "in", 20)))
    with pytest.raises(ModelError, match=r"nothing is left to quantize: layer 'a' \(Convolution\)"):
        int8calib.calibrate(net, lambda: [])


def test_both_engines_say_why_they_do_not_run_a_model(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    files = tmp_path / "net.param", tmp_path / "net.bin"
    save_model(behind("Eltwise x 2 1 a a x 0=9").layers, *files)
    with pytest.raises(
        ModelError,
        match=r"net.param: ncnn refuses .*; nor .* in numpy: layer 'x' \(Eltwise\) cannot",
    ):
        int8calib.load_ncnn(*files)


@pytest.mark.parametrize("engine", [None, "numpy"])
def test_a_model_in_int8_is_refused_whether_or_not_ncnn_is_there(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = translate_model(weighted(*MODEL))
    given = np.random.default_rng(7).normal(size=(3, 7, 11, 13)).astype(np.float32)
    files = tmp_path / "net.param", tmp_path / "net.bin"
    net.write_int8(int8calib.calibrate(net, lambda: [{"in": given}]).table, *files)
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(ModelFileError, match=r"net.param: layer 'a' is INT8 already; give the"):
        int8calib.load_ncnn(*files, engine=engine)


@pytest.mark.parametrize("engine", ["numpy", "runtime"])
def test_an_input_beyond_the_limit_is_refused_once(engine: Any, tmp_path: Path) -> None:
    if engine == "runtime":
        pytest.importorskip("ncnn")
    files = tmp_path / "net.param", tmp_path / "net.bin"
    save_model(weighted("Input in 0 1 in 0=2000000000 1=2000000000 2=7", MODEL[1]).layers, *files)
    with pytest.raises(ShapeError, match=r"^[^;]*input 'in' of shape .* \(the limit\)$"):
        int8calib.load_ncnn(*files, engine=engine)
