"""ncnn models simulated in INT8, calibrated and tuned in numpy, against ncnn's tools and runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib import Options, TuneOptions
from int8calib.ncnn.quantize import read_rows
from int8calib.ncnn.translate.back import with_weights
from int8calib.ncnn.translate.network import TranslatedNet, translate_model
from int8calib.ncnn.weights import to_float16
from tests.ncnn.execution.models import REAL, golden_table, real_files, real_images
from tests.ncnn.runtime import run_blobs
from tests.ncnn_runtime import sqnr

INPUTS = {"pnnx_small": "in0", "realesr-animevideov3-x2": "data", "waifu2x_cunet_noise0": "Input1"}
AGREEMENT = 120
"""SQNR of the simulation against ncnn's INT8: equal but for the rounding of floats."""


def as_ncnn2int8_stores_it(net: TranslatedNet) -> TranslatedNet:
    """The network with weights in half precision where they stay in float."""
    layers = tuple(
        replace(layer, weights=(to_float16(np.float32(layer.weights[0])), *layer.weights[1:]))
        if layer.type == "Deconvolution"
        else layer
        for layer in net.model.layers
    )
    return translate_model(replace(net.model, layers=layers), net.input_shapes)


def real_net(shared: Path, name: str, *, optimize: bool = False) -> TranslatedNet:
    side = REAL[name][1]
    return int8calib.load_ncnn(
        *real_files(shared, name),
        engine="numpy",
        input_shapes={INPUTS[name]: (1, 3, side, side)},
        optimize=optimize,
    )


@pytest.mark.parametrize("kind", ["raw", "opt"])
@pytest.mark.parametrize("name", REAL)
def test_simulation_is_what_ncnn_computes(
    name: str, kind: str, shared: Path, tmp_path: Path
) -> None:
    folder = shared / "golden" / "ncnn_models" / "ncnn" / name
    golden, info = np.load(folder / "outputs.npz"), json.loads((folder / "info.json").read_text())
    (tmp_path / "net.table").write_text(golden_table(shared, name, kind))
    net = as_ncnn2int8_stores_it(real_net(shared, name, optimize=kind == "opt"))
    int8 = int8calib.simulate(net, int8calib.read_table(tmp_path / "net.table"))
    files = sorted((shared / "golden" / "png227").glob("*.png"))
    images = dict(zip([file.stem for file in files], real_images(shared, name), strict=True))
    for number, stem in enumerate(info["run_images"]):
        (key,) = (k for k in golden if k.startswith(f"int8_{kind}_plain/") and k[-1] == str(number))
        blob = key.split("/")[1]
        top = int8.forward({INPUTS[name]: images[stem][None]}, outputs=[blob])[blob]
        every = info["outputs"][f"fp32/{blob}/{number}"].get("every") or 1
        expected = golden[key].reshape(-1)
        assert sqnr(expected, top.reshape(-1)[::every]) > AGREEMENT
        float_top = golden[key.replace(f"int8_{kind}_plain", "fp32")].reshape(-1)
        assert sqnr(float_top, expected) < 70  # so the levels, not the floats, were compared


@pytest.mark.parametrize(
    ("method", "apart"), [("minmax", 1e-4), ("percentile", 1e-3), ("mse", 0.02)]
)
def test_calibration_is_that_of_the_runtime(shared: Path, method: str, apart: float) -> None:
    """Activations differ in their last digits, which moves flat minima of mse by some bins."""
    pytest.importorskip("ncnn")
    name = "realesr-animevideov3-x2"
    batches = [{INPUTS[name]: image[None]} for image in real_images(shared, name)[:6]]
    other = int8calib.load_ncnn(*real_files(shared, name), engine="runtime")
    own, theirs = (
        int8calib.calibrate(net, lambda: batches, Options(method=method)).table
        for net in (real_net(shared, name), other)
    )
    for a, b in zip(own.layers, theirs.layers, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(a.weight_scales, b.weight_scales)
        assert a.bottom_scale == pytest.approx(b.bottom_scale, rel=apart)


def test_a_tuned_model_runs_in_ncnn_as_it_was_tuned(shared: Path, tmp_path: Path) -> None:
    """Tuned, put back, quantized and run in ncnn itself on images that had no part in it."""
    pytest.importorskip("ncnn")
    name = "pnnx_small"
    net, images = real_net(shared, name), real_images(shared, name)
    used = [{INPUTS[name]: image[None]} for image in images[:12]]
    options = Options(exclude=("convdw_26",))  # ncnn garbles it on x86
    plain = int8calib.calibrate(net, lambda: used, options).table
    tuned = int8calib.tune(net, lambda: used, options, TuneOptions(change_model=True))
    assert tuned.changed
    changed = TranslatedNet(
        tuned.net.graph, net.input_shapes, with_weights(net.model, tuned.net.graph)
    )

    def tops(int8: int8calib.NcnnModel) -> np.ndarray:
        found = [
            run_blobs(int8.layers, {INPUTS[name]: image}, ["out0"], packing=False, folder=tmp_path)
            for image in images[12:]
        ]
        return np.concatenate([top for (top,) in found])

    held_out = {INPUTS[name]: np.stack(images[12:])}
    simulated = int8calib.simulate(tuned.net, tuned.table).forward(held_out)["out0"]
    after = tops(changed.quantized(tuned.table, fp32=True))
    assert sqnr(simulated.reshape(-1), after) > 80
    expected = net.forward(held_out)["out0"].reshape(-1)
    assert sqnr(expected, after) > sqnr(expected, tops(net.quantized(plain, fp32=True))) + 1


def test_the_same_layers_are_quantized_as_by_ncnn2table(shared: Path) -> None:
    for name in REAL:
        rows = read_rows(golden_table(shared, name, "raw"), "golden")
        own = [layer.name for layer in real_net(shared, name).executor().layers]
        assert own == list(rows.bottoms)
