"""The networks of the field with generated weights: every layer against OpenCV, every table row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.table import write_table
from tests.generated import make_model
from tests.network_styles import STYLES
from tests.opencv import layer_deviations
from tests.rows import expected_rows, written_rows

NETWORKS = (
    "squeezenet_v1.1",
    "mobilenet_v1",
    "mobilenet_v2",
    "googlenet_v1",
    "resnet18",
    "resnet50",
    "mobilenet_v1_ssd300",
)
CLOSE = 1e-4


def check(prototxt: str, folder: Path) -> None:
    """Both halves for one network."""
    proto, model = make_model(folder, prototxt, opening=0.5)
    net = int8calib.load_caffe(proto, model)
    ((name, shape),) = net.input_shapes.items()
    images = np.random.default_rng(5).normal(0, 60, (1, *shape[1:])).astype(np.float32)
    found = layer_deviations(net, proto, model, {name: images})
    worst = max(found, key=found.__getitem__)
    assert found[worst] <= CLOSE, worst
    done = int8calib.calibrate(net, lambda: [{name: images}])
    write_table(folder / "net.table", done.table)
    assert sorted(written_rows(folder / "net.table")) == sorted(expected_rows(prototxt))


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, shared: Path, tmp_path: Path) -> None:
    check((shared / f"networks/{name}.prototxt").read_text(encoding="utf-8"), tmp_path)


@pytest.mark.parametrize("name", STYLES)
def test_small_network_of_a_style(name: str, tmp_path: Path) -> None:
    check(STYLES[name](), tmp_path)


def test_small_detector_finds_something(tmp_path: Path) -> None:
    # Otherwise the comparison of detections would compare nothing.
    net = int8calib.load_caffe(*make_model(tmp_path, STYLES["ssd"]()))
    images = np.random.default_rng(5).normal(0, 60, (1, 3, 61, 67)).astype(np.float32)
    (rows,) = net.forward({"data": images}).values()
    assert len(rows.reshape(-1, 7)) > 3
    assert set(rows.reshape(-1, 7)[:, 1]) == {1, 2}
