"""Real models through conversion, optimization and quantization: the bytes of ncnn's own tools."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from int8calib.caffe.engine.run import load_caffe
from int8calib.errors import TableError
from int8calib.ncnn.convert.network import convert_network
from int8calib.ncnn.model import load_model, save_model
from int8calib.ncnn.optimize import optimize_model
from int8calib.ncnn.param import HINTS, NcnnLayer, format_param, parse_param
from int8calib.ncnn.quantize import quantize_model, read_rows
from int8calib.ncnn.weights import write_weights
from tests.conftest import SHARED
from tests.generated import make_model

GOLDEN = SHARED / "golden" / "ncnn_models"
CAFFE = sorted(path.name for path in (GOLDEN / "caffe").glob("*"))
NETWORKS = sorted(path.name for path in (GOLDEN / "networks").glob("*"))
NCNN = {
    "pnnx_small": "small",
    "realesr-animevideov3-x2": "realesr-animevideov3-x2",
    "waifu2x_cunet_noise0": "noise0_model",
}
PARAMS = sorted([*(SHARED / "golden").rglob("*.param"), *(SHARED / "ncnn_models").rglob("*.param")])

pytestmark = pytest.mark.skipif(not CAFFE, reason=f"no golden models at {GOLDEN}")


def structure(layers: Sequence[NcnnLayer]) -> list[Any]:
    """What must agree: the shape hints are left out, which the tools fill at random in places."""
    return [
        (
            layer.type,
            layer.bottoms,
            layer.tops,
            {k: v for k, v in layer.params.items() if k != HINTS},
        )
        for layer in layers
    ]


def names(layers: Sequence[NcnnLayer]) -> list[str]:
    return [layer.name for layer in layers]


def check(layers: Sequence[NcnnLayer], golden: Path, info: dict[str, Any], binary: str) -> None:
    """Equal structure, and equal bytes of weights."""
    expected = parse_param(golden.read_text(), golden.name)
    assert structure(layers) == structure(expected)
    if "by hand" not in str(info.get("upgraded")):  # there the Input layer got another name
        assert names(layers) == names(expected)
    digest = hashlib.sha256(write_weights(layers)).hexdigest()
    assert digest == info["files"][binary]["sha256"]


def table_text(path: Path) -> str:
    if path.exists():
        return path.read_text()
    return gzip.decompress(path.with_name(path.name + ".gz").read_bytes()).decode()


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: str(path.relative_to(SHARED)))
def test_structure_files_come_back_letter_by_letter(path: Path) -> None:
    text = path.read_text()
    width = 16 if path.name in ("caffe2ncnn.param", "converted.param") else 24
    assert format_param(parse_param(text, path.name), width=width) == text


def check_all(net: Any, folder: Path) -> None:
    """Converted, optimized, optimized in half precision, quantized."""
    info = json.loads((folder / "info.json").read_text())
    plain = convert_network(net).layers
    check(plain, folder / "caffe2ncnn.param", info, "caffe2ncnn.bin")
    optimized = optimize_model(plain)
    check(optimized, folder / "ncnnoptimize.param", info, "ncnnoptimize.bin")
    half = write_weights(optimize_model(plain, fp16=True))
    stored = info["files"].get("ncnnoptimize_65536.bin")
    if stored:
        assert hashlib.sha256(half).hexdigest() == stored["sha256"]
    int8 = quantize_model(optimized, read_rows(table_text(folder / "kl.table"), "kl.table"))
    check(int8, folder / "ncnn2int8.param", info, "ncnn2int8.bin")


@pytest.mark.parametrize("name", CAFFE)
def test_caffe_models_give_the_bytes_of_ncnns_tools(name: str) -> None:
    folder = GOLDEN / "caffe" / name
    info = json.loads((folder / "info.json").read_text())
    model = SHARED / "models" / name
    shapes = {"data": (1, 1, 28, 28)} if name == "lenet_everpeace" else None
    net = load_caffe(model / info["prototxt"], model / info["caffemodel"], input_shapes=shapes)
    check_all(net, folder)


@pytest.mark.parametrize("name", NETWORKS)
def test_target_networks_give_the_structure_of_ncnns_tools(name: str, tmp_path: Path) -> None:
    folder = GOLDEN / "networks" / name
    info = json.loads((folder / "info.json").read_text())
    files = make_model(tmp_path, (SHARED / "networks" / f"{name}.prototxt").read_text())
    net = load_caffe(*files)
    plain = convert_network(net).layers
    optimized = optimize_model(plain)
    for layers, file in ((plain, "caffe2ncnn.param"), (optimized, "ncnnoptimize.param")):
        expected = parse_param((folder / file).read_text(), file)
        assert structure(layers) == structure(expected)
        if "by hand" not in str(info.get("upgraded")):
            assert names(layers) == names(expected)
    # Weights are generated, so bytes agree only where this machine rounds as that one did.
    if hashlib.sha256(files[1].read_bytes()).hexdigest() == info["caffemodel_sha256"]:
        check_all(net, folder)


@pytest.mark.parametrize("name", NCNN)
def test_ncnn_models_give_the_bytes_of_ncnns_tools(name: str, tmp_path: Path) -> None:
    folder, source = GOLDEN / "ncnn" / name, SHARED / "ncnn_models" / name
    info = json.loads((folder / "info.json").read_text())
    files = [source / f"{NCNN[name]}.{end}" for end in ("param", "bin")]
    raw = load_model(*files).layers
    assert write_weights(raw) == files[1].read_bytes()
    optimized = optimize_model(raw)
    check(optimized, folder / "ncnnoptimize.param", info, "ncnnoptimize.bin")
    for kind, layers in (("raw", raw), ("opt", optimized)):
        rows = read_rows(table_text(folder / f"{kind}.kl.table"), "kl.table")
        int8 = quantize_model(layers, rows)
        check(int8, folder / f"{kind}.int8.param", info, f"{kind}.ncnn2int8.bin")
    save_model(int8, tmp_path / "a.param", tmp_path / "a.bin")
    again = load_model(tmp_path / "a.param", tmp_path / "a.bin")
    assert write_weights(again.layers) == write_weights(int8)


def test_rows_that_do_not_fit_are_refused() -> None:
    source = SHARED / "ncnn_models" / "pnnx_small"
    layers = load_model(source / "small.param", source / "small.bin").layers
    text = table_text(GOLDEN / "ncnn" / "pnnx_small" / "raw.kl.table")
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if "_param_0" in line)
    key = lines[first].split()[0]
    bottom = next(line for line in lines if line.startswith(key.removesuffix("_param_0") + " "))
    wrong = {
        "has 15 scales": [" ".join(lines[first].split()[:-1]), *lines[1:]],
        "no such layer": [*lines, "nosuch 1.0"],
        "needs a row": [line for line in lines if line != lines[first]],
        "no bottom scale": [line for line in lines if line != bottom],
        "stays in float": [*lines, "in0 3.5"],
        "twice": [*lines, bottom],
        "no number": [*lines, "x a"],
    }
    for message, changed in wrong.items():
        with pytest.raises(TableError, match=message):
            quantize_model(layers, read_rows("\n".join(changed), "t"), "t")
