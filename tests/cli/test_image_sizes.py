"""Images that keep a size of their own, from `calibrate` to `tune`, against OpenCV's dnn."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe_proto
from int8calib.cli.main import main
from tests.generated import make_model

# Without a layer that fixes the size; the outputs are as large as the image.
NET = """
name: "lines"
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 1 dim: 1 dim: 31 dim: 53 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
  convolution_param { num_output: 5 kernel_size: 3 pad: 1 } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "c2" type: "Convolution" bottom: "p1" top: "c2"
  convolution_param { num_output: 7 kernel_size: 3 pad: 1 } }
layer { name: "r2" type: "ReLU" bottom: "c2" top: "c2" }
layer { name: "c3" type: "Convolution" bottom: "c2" top: "c3"
  convolution_param { num_output: 3 kernel_size: 1 } }
"""
HEIGHT, WIDTH = 31, 53
# Height and width of each image; two neighbors have one size after resizing to a height.
SIZES = [(31, 53), (62, 101), (31, 53), (31, 53), (19, 67), (43, 29), (43, 29)]


def resized(mode: str, image: np.ndarray) -> np.ndarray:
    """What the option says, written down once more."""
    height, width = image.shape[:2]
    if mode == "height":
        size = (HEIGHT, int(width * HEIGHT / height + 0.5))
    elif mode == "width":
        size = (int(height * WIDTH / width + 0.5), WIDTH)
    else:
        return image
    return cv2.resize(image, size[::-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and gray images of several sizes."""
    folder = tmp_path_factory.mktemp("lines")
    make_model(folder, NET)
    rng = np.random.default_rng(23)
    (folder / "images").mkdir()
    for i, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (5, 7), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / "images" / f"{i}.png"), image)
    return folder


def arguments(folder: Path, command: str, *more: str) -> list[str]:
    words = [command, "--proto", str(folder / "net.prototxt")]
    words += ["--model", str(folder / "net.caffemodel")]
    if "--images" not in more:
        words += ["--images", str(folder / "images")]
    return [*words, "--mean", "127.5", "--norm", "0.5", *more]


def absmax(folder: Path, blobs: list[np.ndarray]) -> dict[str, float]:
    """The largest absolute value of each layer's bottom over all images, by OpenCV."""
    net = cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))
    largest = {"c1": 0.0, "c2": 0.0, "c3": 0.0}
    for blob in blobs:
        net.setInput(blob[None, None])
        p1, r2 = net.forward(["p1", "r2"])
        for name, values in (("c1", blob), ("c2", p1), ("c3", r2)):
            largest[name] = max(largest[name], float(np.abs(values).max()))
    return largest


def evidence(table: Path) -> dict[str, float]:
    layers = json.loads(table.with_name(f"{table.name}.json").read_text())["layers"]
    return {layer["name"]: layer["evidence"]["absmax"] for layer in layers}


@pytest.mark.parametrize("mode", ["height", "width", "none"])
def test_each_image_has_its_own_size(mode: str, folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "net.table"
    more = ["--resize", mode, "--method", "minmax", "--output", str(table), "--quiet"]
    assert main(arguments(folder, "calibrate", *more)) == 0
    images = [cv2.imread(str(p), 0) for p in sorted((folder / "images").iterdir())]
    blobs = [(resized(mode, image) - np.float32(127.5)) * np.float32(0.5) for image in images]
    assert len({blob.shape for blob in blobs}) >= 3
    expected = absmax(folder, blobs)
    assert evidence(table) == pytest.approx(expected, rel=1e-5)


def test_arrays_of_several_sizes(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(29)
    shapes = [(1, 31, 53), (1, 31, 53), (1, 17, 83), (1, 41, 23)]
    blobs = [rng.normal(0, 9 * i + 20, s).astype(np.float32) for i, s in enumerate(shapes)]
    for i, blob in enumerate(blobs):
        np.save(tmp_path / f"{i}.npy", blob)
    table = tmp_path / "net.table"
    more = ["--images", str(tmp_path), "--method", "minmax", "--output", str(table), "--quiet"]
    assert main(arguments(folder, "calibrate", *more)) == 0
    expected = absmax(folder, [blob[0] for blob in blobs])
    assert evidence(table) == pytest.approx(expected, rel=1e-5)


def test_the_table_does_not_depend_on_the_batch(folder: Path, tmp_path: Path) -> None:
    tables = []
    for batch in (1, 2, 3, 7):
        table = tmp_path / f"{batch}.table"
        more = ["--resize", "height", "--batch", str(batch), "--output", str(table), "--quiet"]
        assert main(arguments(folder, "calibrate", *more)) == 0
        tables.append(table.read_text())
    assert len(set(tables)) == 1
    # With the images in another size it is another table.
    more = ["--output", str(tmp_path / "s.table"), "--quiet"]
    assert main(arguments(folder, "calibrate", *more)) == 0
    assert (tmp_path / "s.table").read_text() != tables[0]


def test_every_command_takes_images_of_several_sizes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, free = str(tmp_path / "net.table"), ["--resize", "none", "--batch", "2"]
    for command, more in (
        ("calibrate", ["--output", table]),
        ("collect", ["--output", str(tmp_path / "s.npz")]),
        ("evaluate", ["--table", table, "--json"]),
        ("analyze", ["--table", table, "--json"]),
        ("report", ["--table", table, "--output", str(tmp_path / "page.html")]),
        ("tune", ["--output", str(tmp_path / "tuned.table")]),
        (
            "tune",
            [
                *("--output", str(tmp_path / "m.table"), "--write-model"),
                *(str(tmp_path / "m.caffemodel"), str(tmp_path / "m.prototxt")),
            ],
        ),
    ):
        assert main(arguments(folder, command, *free, *more)) == 0, command
        out = capsys.readouterr().out
        if command == "evaluate":
            found = json.loads(out)
            assert found["images"] == len(SIZES)
            assert all(20 < blob["sqnr"] < 90 for blob in found["tables"][0]["blobs"])
        if command == "analyze":
            assert json.loads(out)["images"] == len(SIZES)


def test_images_that_the_network_does_not_take_are_skipped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    fc = """
    layer { name: "fc" type: "InnerProduct" bottom: "c3" top: "fc"
      inner_product_param { num_output: 4 } }
    """
    make_model(fixed, NET + fc)
    more = ["--images", str(folder / "images"), "--output", str(tmp_path / "net.table")]
    assert main(arguments(fixed, "calibrate", "--resize", "height", *more)) == 0
    said = capsys.readouterr().err
    assert "4 of 7 images were skipped" in said
    for name in ("1.png", "4.png", "5.png", "6.png"):
        assert f"skipped: {name}: the network does not take its size" in said
    (tmp_path / "wide").mkdir()
    wide = np.zeros((31, 97), np.uint8)
    assert cv2.imwrite(str(tmp_path / "wide" / "wide.png"), wide)
    more[1] = str(tmp_path / "wide")
    assert main(arguments(fixed, "calibrate", "--resize", "height", *more)) == 2
    said = capsys.readouterr().err
    assert "not one of the 1 images could be used; the first: wide.png: the network" in said
    assert "data 1x31x97" in said
    assert "'fc'" in said
    assert len(said.splitlines()) == 1


def crnn_conv1(weights: np.ndarray, bias: np.ndarray, blob: np.ndarray) -> np.ndarray:
    """Relu of a 3x3 convolution with stride 2 and padding 1, place by place."""
    padded = np.pad(blob.astype(np.float64), 1)
    height, width = (blob.shape[0] + 1) // 2, (blob.shape[1] + 1) // 2
    top = np.zeros((len(weights), height, width))
    for y in range(height):
        for x in range(width):
            window = padded[2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
            top[:, y, x] = (weights[:, 0] * window).sum(axis=(1, 2)) + bias
    return np.maximum(top, 0)


@pytest.mark.parametrize("arrays", [False, True])
def test_lines_of_text_of_any_width(
    arrays: bool, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = shared / "cases" / "e1_crnn"
    model = ["--proto", str(case / "net.prototxt"), "--model", str(case / "net.caffemodel")]
    rng = np.random.default_rng(31)
    blobs = []
    (tmp_path / "lines").mkdir()
    for i, (height, width) in enumerate([(32, 100), (64, 207), (19, 61), (32, 100), (41, 303)]):
        coarse = rng.integers(0, 256, (4, width // 9), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        scaled = cv2.resize(image, (int(width * 32 / height + 0.5), 32))
        blobs.append((scaled - np.float32(127.5)) * np.float32(1 / 128))
        if arrays:
            np.save(tmp_path / "lines" / f"{i}.npy", blobs[-1][None])
        else:
            assert cv2.imwrite(str(tmp_path / "lines" / f"{i}.png"), image)
    more = ["--images", str(tmp_path / "lines"), "--mean", "127.5", "--norm", "0.0078125"]
    more += ["--resize", "height", "--method", "minmax", "--output", str(tmp_path / "t.table")]

    assert main(["calibrate", *model, *more]) == 2
    assert "--input-shape data=1,1,32,W" in capsys.readouterr().err
    assert main(["calibrate", *model, *more, "--input-shape", "data=1,1,32,100"]) == 0
    # The layer behind the LSTM is left in float, and named.
    said = capsys.readouterr().err
    assert any("warning" in line and "fc" in line and "'l'" in line for line in said.splitlines())
    weights, bias = caffe_proto.read_weights(case / "net.caffemodel")["c1"]
    tops = [crnn_conv1(weights, bias, blob) for blob in blobs]
    assert len({top.shape for top in tops}) == 3
    expected = {
        "c1": max(float(np.abs(blob).max()) for blob in blobs),
        "c2": max(float(top.max()) for top in tops),
    }
    assert evidence(tmp_path / "t.table") == pytest.approx(expected, rel=1e-5)
