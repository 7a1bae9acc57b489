"""ncnn models on a device: ncnn's own values, tables as on the CPU, and what runs in ncnn refused.

The device is a stand-in whose arrays refuse what CuPy's refuse.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.demo import CAFFEMODEL, PROTOTXT
from int8calib.errors import OptionError
from int8calib.ncnn.convert.network import convert_network
from int8calib.ncnn.model import load_model, save_model
from int8calib.ncnn.param import parse_param
from tests.ncnn.runtime import run_blobs
from tests.strict_arrays import Transfers, strict_device

DEVICE = strict_device()
IMAGES = np.random.default_rng(5).normal(0, 50, (5, 3, 64, 64)).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    files = tmp_path / "net.param", tmp_path / "net.bin"
    save_model(convert_network(int8calib.load_caffe(PROTOTXT, CAFFEMODEL)).layers, *files)
    return files


def test_blobs_are_those_of_ncnn(files: tuple[Path, Path], tmp_path: Path) -> None:
    net = int8calib.load_ncnn(*files, device=DEVICE)
    assert isinstance(net, int8calib.TranslatedNet)
    assert net.device is DEVICE
    (name,) = net.input_shapes
    (out,) = [blob.name for blob in net.graph.outputs]
    shape = net.input_shapes[name][1:]
    images = IMAGES[:2, : shape[0], : shape[1], : shape[2]]
    Transfers.reset()
    found = net.forward({name: images})[out]
    assert Transfers.uploads > 0
    for image, own in zip(images, found, strict=True):
        layers = load_model(*files).layers
        (expected,) = run_blobs(layers, {name: image}, [out], folder=tmp_path)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(own.ravel(), expected.ravel(), atol=1e-4 * scale)


def test_a_table_is_that_of_the_cpu(files: tuple[Path, Path]) -> None:
    tables = []
    for device in (None, DEVICE):
        net = int8calib.load_ncnn(*files, engine="numpy", device=device)
        ((name, shape),) = net.input_shapes.items()
        pixels = IMAGES[:, : shape[1], : shape[2], : shape[3]]
        tables.append(int8calib.calibrate(net, lambda given={name: pixels}: [given]).table)
    assert "device" not in tables[0].meta
    assert tables[1].meta["device"]["name"] == DEVICE.name
    assert tables[0].layers
    for a, b in zip(tables[0].layers, tables[1].layers, strict=True):
        assert a.bottom_scale == pytest.approx(b.bottom_scale, rel=1e-3)


def test_what_runs_in_ncnn_has_no_device(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"engine 'runtime'; so the model runs in ncnn itself"):
        int8calib.load_ncnn(*files, engine="runtime", device=DEVICE)
    text = "7767517\n2 2\nInput in 0 1 in 0=13 1=11 2=7\nCumulativeSum sum 1 1 in out 0=1\n"
    other = tmp_path / "other.param", tmp_path / "other.bin"
    save_model(parse_param(text, "other"), *other)
    with pytest.raises(
        OptionError, match=r"\(CumulativeSum\) cannot .* on the CPU: leave the device out"
    ):
        int8calib.load_ncnn(*other, device=DEVICE)
