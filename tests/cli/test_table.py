"""`int8calib table`: what it shows, finds, compares and writes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from int8calib.cli.main import main
from int8calib.table import read_table
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images, and tables made of folded and of raw weights."""
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, NET)
    (folder / "images").mkdir()
    rng = np.random.default_rng(7)
    for i in range(5):
        noise = rng.integers(0, 256, (37, 29, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"images/{i}.png"), noise)
    for name, more in [("folded", []), ("raw", ["--no-fold-bn"]), ("mse", ["--method", "mse"])]:
        words = ["--images", str(folder / "images"), "--output", str(folder / f"{name}.table")]
        assert main(["calibrate", *network(folder), *words, *more, "--quiet"]) == 0
    return folder


def network(folder: Path) -> list[str]:
    return ["--proto", str(folder / "net.prototxt"), "--model", str(folder / "net.caffemodel")]


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> tuple[str, str]:
    assert main(["table", *map(str, words)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_show_lists_every_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "show", folder / "folded.table")
    table = read_table(folder / "folded.table")
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    for row in table.layers:
        assert lines[row.name][1] == f"{row.bottom_scale:.6g}"
        assert lines[row.name][3] == str(len(row.weight_scales))
        assert lines[row.name][5] == f"{row.weight_scales.max():.6g}"
    out, _ = said(capsys, "show", folder / "folded.table.json")
    assert "data (minmax)" in out


def test_check_against_the_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "check", folder / "folded.table", *network(folder))
    assert "0 errors, 0 warnings" in err
    out, _ = said(capsys, "check", folder / "raw.table", *network(folder), code=1)
    assert "conv1: made from unfolded weights" in out
    assert out.startswith("error: ")
    said(capsys, "check", folder / "raw.table", *network(folder), "--no-fold-bn")
    out, _ = said(
        capsys, "check", folder / "folded.table", *network(folder), "--no-fold-bn", code=1
    )
    assert "made from folded weights" in out


def test_check_takes_fields_to_ignore_and_needs_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "net.prototxt").read_text(encoding="utf-8")
    assert "convolution_param {" in text
    proto = tmp_path / "net.prototxt"
    proto.write_text(text.replace("convolution_param {", "convolution_param { odd: 3", 1), "utf-8")
    words = ["check", folder / "folded.table", "--proto", proto]
    words += ["--model", folder / "net.caffemodel"]
    assert "nothing runs here" in said(capsys, *words)[1]
    assert "as told" in said(capsys, *words, "--ignore-field", "convolution_param.odd")[1]


def test_check_finds_what_a_hand_breaks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "folded.table").read_text().splitlines()

    def check(changed: list[str]) -> str:
        path = tmp_path / "t.table"
        path.write_text("\n".join(changed) + "\n")
        out, _ = said(capsys, "check", path, *network(folder), code=1)
        return out

    key, first, *rest = lines[0].split()
    assert key == "conv1_param_0"
    twice = " ".join([key, str(3 * float(first)), *rest])
    assert "channel 0 is 3 times" in check([twice, *lines[1:]])
    assert "6 weight scales, Convolution needs 7" in check([" ".join([key, *rest]), *lines[1:]])
    assert "no weight scales" in check(lines[1:])
    assert "blank line" in check([lines[0], "", *lines[1:]])


def test_check_against_a_structure_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    param = tmp_path / "net.param"
    param.write_text(
        "7767517\n3 3\nInput data 0 1 data\n"
        "Convolution conv1 1 1 data x 0=7 1=5 11=3\nInnerProduct fc 1 1 x y 0=13\n"
    )
    out, _ = said(capsys, "check", folder / "folded.table", "--param", param, code=1)
    assert "fc: 11 weight scales, InnerProduct needs 13" in out
    assert "dw: the network has no such layer" in out
    for words in (["--param", str(param), *network(folder)], network(folder)[:2]):
        said(capsys, "check", folder / "folded.table", *words, code=2)


def test_diff_puts_the_worst_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = folder / "folded.table", folder / "mse.table"
    out, err = said(capsys, "diff", a, b)
    ratios = [
        read_table(b)[row.name].bottom_scale / row.bottom_scale for row in read_table(a).layers
    ]
    worst = max(ratios, key=lambda r: abs(np.log(r)))
    first = next(line for line in out.splitlines() if " bottom " in line)
    assert f"{worst:.6g}" in first.split()
    assert "10 rows" in err
    out, err = said(capsys, "diff", a, a, "--limit", "3")
    assert "10 rows, 10 of them equal" in err
    assert sum(" bottom " in line or " weights " in line for line in out.splitlines()) == 3
    with pytest.raises(SystemExit) as stop:
        main(["table", "diff", str(a), str(b), "--limit", "0"])
    assert stop.value.code == 2


def test_convert_goes_through_every_format(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = folder / "folded.table.json"
    for name in ("ncnn", "tool", "json", "tensorrt"):
        said(capsys, "convert", report, tmp_path / name, "--format", name)
    assert (tmp_path / "ncnn").read_bytes() == (folder / "folded.table").read_bytes()
    cache = dict(line.split(": ") for line in (tmp_path / "tensorrt").read_text().splitlines()[1:])
    absmax = json.loads(report.read_text())["layers"][0]["evidence"]["absmax"]
    (scale,) = struct.unpack(">f", bytes.fromhex(cache["data"]))
    assert scale == pytest.approx(absmax / 127, rel=1e-6)
    _, err = said(
        capsys, "convert", folder / "folded.table", tmp_path / "x", "--format", "tensorrt", code=2
    )
    assert "name of its bottom blob is missing" in err
    assert not (tmp_path / "x").exists()


def test_errors_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").write_text("{")
    for words in (["show", "gone.table"], ["show", str(tmp_path / "bad")]):
        _, err = said(capsys, *words, code=2)
        assert err.startswith("int8calib: error: ")
        assert err.count("\n") == 1
    out, err = said(capsys, "--quiet", "show", folder / "folded.table")
    assert out == err == ""
