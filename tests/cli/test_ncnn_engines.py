"""Commands that look into a network, given an ncnn model: --param and --bin."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int8calib.cli.main import main
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.model import load_model, save_model
from int8calib.ncnn.param import parse_param

LINES = """7767517
9 10
Input in 0 1 in 0=13 1=11 2=3
Convolution c1 1 1 in a 0=16 1=3 4=1 5=1 6=432 9=1
Split s 1 2 a a0 a1
ConvolutionDepthWise c2 1 1 a1 b 0=16 1=3 4=1 5=1 6=144 7=16 9=2 -23310=1,0.1
BinaryOp add 2 1 a0 b c 0=0
Convolution c3 1 1 c d 0=16 1=1 5=1 6=256
HardSwish act 1 1 d e 0=0.3 1=0.4
Pooling p 1 1 e f 0=1 4=1
InnerProduct fc 1 1 f out 0=7 1=1 2=112
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the same with a layer that runs in ncnn only, images, and a table."""
    folder = tmp_path_factory.mktemp("ncnn")
    rng = np.random.default_rng(3)
    layers = []
    for layer in parse_param(LINES, "net.param"):
        blobs = [0.3 * rng.standard_normal(blob.size) for blob in blob_layout(layer)]
        if layer.name == "c1":  # channels of different sizes, which tuning makes alike
            blobs = [np.repeat(np.geomspace(0.02, 3, 16), len(b) // 16) * b for b in blobs]
        layers.append(replace(layer, weights=tuple(np.float32(blob) for blob in blobs)))
    save_model(layers, folder / "net.param", folder / "net.bin")
    odd = replace(layers[6], type="GridSample", params={})
    save_model([*layers[:6], odd, *layers[7:]], folder / "odd.param", folder / "odd.bin")
    np.save(folder / "images.npy", rng.standard_normal((120, 3, 11, 13)).astype(np.float32))
    command(folder, "calibrate", "net", "--output", str(folder / "net.table"))
    return folder


def command(folder: Path, name: str, model: str, *words: str) -> None:
    files = ("--param", str(folder / f"{model}.param"), "--bin", str(folder / f"{model}.bin"))
    images = ("--images", str(folder / "images.npy"))
    assert main([name, *files, *images, *words]) == 0


def test_analyze_tells_the_error_of_each_layer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ("--table", str(folder / "net.table"), "--sensitivity", "3", "--json")
    command(folder, "analyze", "net", *table)
    found = json.loads(capsys.readouterr().out)
    assert {layer["name"] for layer in found["layers"]} == {"c1", "c2", "c3", "fc"}
    assert all(15 < layer["isolated_sqnr"] < 80 for layer in found["layers"])


def test_report_writes_a_page(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "net.html"
    table = ("--table", str(folder / "net.table"), "--sensitivity", "2", "--samples", "1")
    command(folder, "report", "net", *table, "--output", str(page))
    text = page.read_text()
    assert all(name in text for name in ("c1", "c2", "c3", "fc"))


def test_tune_writes_the_model_with_other_weights(folder: Path, tmp_path: Path) -> None:
    files = ("--output", str(tmp_path / "t.table"), "--ncnn", str(tmp_path / "t"))
    command(folder, "tune", "net", *files, "--batch", "4")
    old = load_model(folder / "net.param", folder / "net.bin").layers
    new = load_model(tmp_path / "t.param", tmp_path / "t.bin").layers
    assert [(la.type, la.name, la.bottoms, la.tops) for la in new] == [
        (la.type, la.name, la.bottoms, la.tops) for la in old
    ]
    changed = {
        a.name
        for a, b in zip(new, old, strict=True)
        if [w.tolist() for w in a.weights] != [w.tolist() for w in b.weights]
    }
    assert changed
    assert changed <= {"c1", "c2", "c3", "fc"}
    int8 = load_model(tmp_path / "t-int8.param", tmp_path / "t-int8.bin").layers
    assert {la.name for la in int8 if la.params.get(8)} == {"c1", "c2", "c3", "fc"}


def test_a_caffe_model_cannot_be_written_of_an_ncnn_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "--param", str(folder / "net.param"), "--bin", str(folder / "net.bin")]
    words += ["--images", str(folder / "images.npy"), "--output", str(tmp_path / "t.table")]
    assert main([*words, "--write-model", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "give --ncnn PREFIX for an ncnn model" in capsys.readouterr().err


def test_the_layer_that_stands_in_the_way_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "odd.table"
    command(folder, "calibrate", "odd", "--output", str(table), "--engine", "numpy")
    capsys.readouterr()
    command(folder, "analyze", "odd", "--table", str(table), "--sensitivity", "0")
    told = capsys.readouterr()
    assert "'act' (GridSample) cannot run: the numpy engine has no such layer" in told.err
    assert "c3" in told.out
    assert "fc" not in [line.split()[0] for line in told.out.splitlines() if line.strip()]


@pytest.mark.parametrize("engine", ["numpy", "runtime"])
def test_both_engines_give_one_table(engine: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    table = tmp_path / "net.table"
    command(folder, "calibrate", "net", "--output", str(table), "--engine", engine)
    own, known = (
        [[float(x) for x in line.split()[1:]] for line in path.read_text().splitlines()]
        for path in (table, folder / "net.table")
    )
    for a, b in zip(own, known, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_engine_is_for_ncnn_models(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["calibrate", "--proto", "p", "--model", "m", "--images", "i", "--output", "o"]
    assert main([*words, "--engine", "numpy"]) == 2
    assert "--engine is for ncnn models" in capsys.readouterr().err
