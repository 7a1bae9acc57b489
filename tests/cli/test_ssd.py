"""The published layout of MobileNet-SSD from a Caffe model to boxes of INT8, by commands alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.cli.main import main
from int8calib.images import Preprocess, open_source
from tests.generated import make_model

SIZE = 257
"""Pixels of the input in place of 300: the last of six grids still has one cell."""
PIXELS = ("--mean", "127.5", "--norm", "0.007843")


def test_from_caffe_to_boxes(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    text = (shared / "networks" / "mobilenet_v1_ssd300.prototxt").read_text(encoding="utf-8")
    assert text.count("dim: 300") == 2
    proto, weights = make_model(tmp_path, text.replace("dim: 300", f"dim: {SIZE}"), opening=0.5)
    photos = ("--images", str(shared / "images" / "imagenet_300"), "--limit", "3", *PIXELS)
    model = ("--proto", str(proto), "--model", str(weights))
    table, prefix = str(tmp_path / "net.table"), str(tmp_path / "net")
    words = ("--output", table, "--ncnn", prefix, "--quiet")
    assert main(["calibrate", *model, *photos, *words]) == 0
    # Both take the table alone, with weights rounded to the nearest level.
    assert main(["evaluate", *model, *photos, "--table", table, "--json", "--runtime"]) == 0
    real = json.loads(capsys.readouterr().out)
    assert main(["evaluate", *model, *photos, "--table", table, "--json"]) == 0
    simulated = json.loads(capsys.readouterr().out)
    assert real["kind"]["name"] == "detector"
    assert set(real["runtime"]["milliseconds"]) == {"float", table}
    for found in (real, simulated):
        assert found["tables"][0]["boxes"]["float"] > 5
    for a, b in zip(real["tables"][0]["blobs"], simulated["tables"][0]["blobs"], strict=True):
        # ncnn scales depthwise layers by an approximate reciprocal.
        assert a["sqnr"] == pytest.approx(b["sqnr"], abs=1.5)
    pairs = [[f"{prefix}{name}.{end}" for name in ("", "-int8")] for end in ("param", "bin")]
    drawn = tmp_path / "drawn"
    words = ("--param", *pairs[0], "--bin", *pairs[1], "--output", str(drawn))
    assert main(["predict", *words, *photos, "--min-score", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert len(list(drawn.iterdir())) == 3
    # The best box of the first photo is the engine's.
    net = int8calib.load_caffe(proto, weights)
    source = open_source(shared / "images" / "imagenet_300", limit=1)
    blob = Preprocess((3, SIZE, SIZE), mean=127.5, norm=0.007843)(source.load(0))
    (rows,) = net.forward({"data": blob[None]}).values()
    best = max(rows.reshape(-1, 7).tolist(), key=lambda row: row[2])
    line = next(line for line in shown.splitlines() if f"{prefix}.param" in line)
    label, score, *corners = map(float, re.findall(r"-?\d+(?:\.\d+)?", line.split(".param")[1]))
    assert (label, score) == (best[1], pytest.approx(best[2], abs=2e-3))
    np.testing.assert_allclose(corners, best[3:], atol=2e-3)
