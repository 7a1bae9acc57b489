"""The command line as a user meets it: a table, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

import int8calib
from int8calib.cli import convert_tool, demo
from int8calib.cli.main import main
from int8calib.table import read_table
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and seven images, one of them broken, beside a file that is none."""
    folder = tmp_path_factory.mktemp("job")
    make_model(folder, NET)
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(7)
    for i in range(6):
        noise = rng.integers(0, 256, (41, 31, 3), dtype=np.uint8)
        assert cv2.imwrite(str(images / f"{i}.png"), noise)
    (images / "broken.jpg").write_bytes(b"no picture")
    (images / "notes.txt").write_text("hello")
    return folder


def arguments(folder: Path, table: Path, **changed: str) -> list[str]:
    options = {
        "--proto": str(folder / "net.prototxt"),
        "--model": str(folder / "net.caffemodel"),
        "--images": str(folder / "images"),
        "--mean": "104 117 123",
        "--norm": "0.5",
        "--output": str(table),
    }
    options.update({f"--{name.replace('_', '-')}": value for name, value in changed.items()})
    words = [[name, *value.split(" ")] for name, value in options.items()]
    return ["calibrate", *(word for pair in words for word in pair)]


def test_calibrate_writes_table_and_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "net.table"
    assert main(arguments(folder, output)) == 0
    table = read_table(output)
    assert [row.name for row in table.layers] == ["conv1", "dw", "pw", "left", "fc"]
    said = capsys.readouterr()
    assert "clipped %" in said.out
    assert "few images: 6" in said.err
    assert "1 files are no images" in said.err
    assert "broken.jpg" in said.err
    report = json.loads((tmp_path / "net.table.json").read_text())
    assert report["meta"]["int8calib"] == int8calib.__version__
    files = report["meta"]["files"]
    import hashlib

    model = folder / "net.caffemodel"
    assert files[str(model)] == hashlib.sha256(model.read_bytes()).hexdigest()
    again = read_table(tmp_path / "net.table.json")
    for row, other in zip(table.layers, again.layers, strict=True):
        np.testing.assert_array_equal(row.weight_scales, other.weight_scales)
        assert other.evidence is not None
        assert other.evidence.threshold == pytest.approx(127 / row.bottom_scale, rel=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "net.table",
        "net.table.json",
        "net.table.toml",
    ]


def test_the_library_gives_the_same_table(folder: Path, tmp_path: Path) -> None:
    assert main([*arguments(folder, tmp_path / "cli.table"), "--quiet"]) == 0
    net = int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel")

    def batches() -> list[dict[str, np.ndarray]]:
        # The preprocessing by hand: OpenCV's resize, then (x - mean) * norm.
        made = []
        for i in range(6):
            image = cv2.resize(cv2.imread(str(folder / f"images/{i}.png")), (29, 37))
            x = (image.astype(np.float32) - np.array([104, 117, 123], np.float32)) * np.float32(0.5)
            made.append({"data": x.transpose(2, 0, 1)[None]})
        return made

    table = int8calib.calibrate(net, batches).table
    for row, other in zip(read_table(tmp_path / "cli.table").layers, table.layers, strict=True):
        np.testing.assert_allclose(row.weight_scales, other.weight_scales, rtol=1e-6)
        assert row.bottom_scale == pytest.approx(other.bottom_scale, rel=1e-6)


def test_quiet_says_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(folder, tmp_path / "t.table"), "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out == said.err == ""
    report = json.loads((tmp_path / "t.table.json").read_text())
    assert any("few images" in line for line in report["meta"]["warnings"])
    assert any("broken.jpg" in line for line in report["meta"]["notes"])


def test_options_change_the_table(folder: Path, tmp_path: Path) -> None:
    def table(name: str, *more: str) -> dict[str, np.ndarray]:
        path = tmp_path / f"{name}.table"
        assert main([*arguments(folder, path), "--quiet", *more]) == 0
        return {row.name: row.weight_scales for row in read_table(path).layers}

    plain = table("plain")
    for name in plain:
        same = np.array_equal(plain[name], table("wino", "--no-winograd")[name])
        assert same, f"{name} is no ungrouped 3x3 stride 1 dilation 1 convolution"
    assert not np.array_equal(plain["conv1"], table("raw", "--no-fold-bn")["conv1"])
    grouped = table("group0", "--group", "0")
    assert all(len(np.unique(scales)) == 1 for scales in grouped.values())
    assert [len(s) for s in grouped.values()] == [len(s) for s in plain.values()]


def test_reference_tool_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tool.table"
    words = arguments(folder, output)[1:]
    assert convert_tool.main([*words, "--group", "1", "--gpu", "1"]) == 0
    assert "runs on the CPU" in capsys.readouterr().err
    plain = tmp_path / "plain.table"
    assert main([*arguments(folder, plain), "--like", "tool", "--quiet"]) == 0
    assert output.read_text() == plain.read_text()
    # The tool's own rows: convolutions alone, of the weights before BatchNorm is folded.
    table = read_table(output, "tool")
    assert [row.name for row in table.layers] == ["conv1", "dw", "pw", "left"]
    ((weight, *_),) = [
        layer.weights
        for layer in int8calib.load_caffe(
            folder / "net.prototxt", folder / "net.caffemodel"
        ).graph.layers
        if layer.name == "conv1"
    ]
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    np.testing.assert_allclose(table["conv1"].weight_scales, 127 / largest, rtol=1e-6)
    assert convert_tool.main([*words, "--input-shape", "image=1,3,5,5"]) == 2
    assert "'image'" in capsys.readouterr().err


BAD = {
    "missing proto": ({"proto": "gone.prototxt"}, "gone.prototxt"),
    "missing model": ({"model": "gone.caffemodel"}, "gone.caffemodel"),
    "missing images": ({"images": "nowhere"}, "nowhere"),
    "mean of the wrong length": ({"mean": "1 2"}, "mean"),
    "mean that is no number": ({"mean": "blue"}, "mean"),
    "norm 0": ({"norm": "0"}, "norm"),
    "norm of the wrong length": ({"norm": "1 2"}, "norm"),
    "no such folder for the output": ({"output": "no/such/folder/t.table"}, "no/such/folder"),
    "unknown method": ({"method": "magic"}, "--method magic: expected one of "),
    "bad input shape": ({"input_shape": "data"}, "--input-shape data: expected NAME=N,C,H,W"),
    "shape of no input": ({"input_shape": "image=1,3,5,5"}, "'image'"),
    "bad cache": ({"cache": "lots"}, "--cache lots"),
    "no workers": ({"workers": "0"}, "--workers 0"),
    "percentile of another method": ({"percentile": "99"}, "only the method percentile takes it"),
    "rounding of no model": ({"rounding": "nearest"}, "--rounding: says how --ncnn"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line_and_exit_2(
    case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, message = BAD[case]
    assert main(arguments(folder, tmp_path / "t.table", **changed)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("int8calib: error: ")
    assert message in error[-1]
    assert not any("Traceback" in line for line in error)
    assert not list(tmp_path.iterdir())


def test_more_errors_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = arguments(
        folder,
        tmp_path / "t.table",
        proto=str(folder / "net.caffemodel"),
        model=str(folder / "net.prototxt"),
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    make_model(other, NET.replace("num_output: 11", "num_output: 13"))
    misfit = arguments(folder, tmp_path / "t.table", model=str(other / "net.caffemodel"))
    no_images = arguments(folder, tmp_path / "t.table", images=str(empty))
    is_folder = arguments(folder, empty)
    for words, message in [
        (swapped, "caffemodel"),
        (misfit, "layer 'fc'"),
        (no_images, "empty"),
        (is_folder, "is a folder"),
    ]:
        assert main(words) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len([line for line in error if "error:" in line]) == 1
        assert message in error[-1]
    assert not (tmp_path / "t.table").exists()


@pytest.mark.parametrize("format", ["ncnn", "tool", "json"])
def test_a_name_that_no_row_can_hold_is_told_before_the_first_image(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(tmp_path, NET.replace('name: "conv1"', 'name: "conv 1"'))
    np.save(tmp_path / "images.npy", np.ones((2, 3, 37, 29), np.float32))
    table = tmp_path / "t.table"
    words = arguments(tmp_path, table, images=str(tmp_path / "images.npy"), format=format)
    words.remove("--quiet") if "--quiet" in words else None
    code = main(words)
    told = capsys.readouterr().err
    if format == "json":
        assert code == 0, told
        return
    assert code == 2
    assert "leave it in float: --exclude 'conv 1'" in told
    assert "statistics" not in told
    assert not table.exists()
    assert main([*words, "--exclude", "conv 1"]) == 0


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in [(["--version"], int8calib.__version__), (["--help"], "calibrate")]:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert text in capsys.readouterr().out


def test_the_demo_ends_with_accuracies_and_commands_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "CALIBRATION_IMAGES", 20)
    monkeypatch.setattr(demo, "TEST_IMAGES", 50)
    folder = tmp_path / "a folder"
    assert main(["demo", "--output", str(folder)]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("Accuracy on 50"))
    in_float, in_int8 = (float(number) for number in re.findall(r"([\d.]+) %", line))
    assert in_float > 90
    table = folder / "demo.table"
    first = table.read_text()
    table.unlink()
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("int8calib ")]
    assert [words[1] for words in commands] == ["evaluate", "predict", "calibrate"]
    evaluate, predict, calibrate = (words[1:] for words in commands)
    assert main(calibrate) == 0
    assert table.read_text() == first
    assert (folder / "demo-int8.bin").stat().st_size < (folder / "demo.bin").stat().st_size
    capsys.readouterr()
    pytest.importorskip("ncnn")
    assert main(predict) == 0
    assert capsys.readouterr().out.count(".png") == 5
    assert main([*evaluate, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    hits = [
        found["float"]["topk"]["1"]["hits"],
        found["tables"][0]["accuracy"]["topk"]["1"]["hits"],
    ]
    assert [round(100 * hit / 50, 1) for hit in hits] == [in_float, in_int8]


def test_a_net_that_mixes_images_runs_one_at_a_time(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Reshape that moves channels into axis 0 must not see two images at once."""
    text = NET.replace("dim: 1 dim: -1", "dim: 12 dim: -1").replace(
        "num_output: 11", "num_output: 3"
    )
    make_model(tmp_path, text, name="mixing")
    plain = arguments(
        folder,
        tmp_path / "one.table",
        proto=str(tmp_path / "mixing.prototxt"),
        model=str(tmp_path / "mixing.caffemodel"),
    )
    assert main([*plain, "--quiet"]) == 0
    batched = [str(tmp_path / "two.table") if w.endswith("one.table") else w for w in plain]
    assert main([*batched, "--batch", "3"]) == 0
    assert "--batch 3 is not used" in capsys.readouterr().err
    assert (tmp_path / "one.table").read_text() == (tmp_path / "two.table").read_text()
