"""`int8calib evaluate` and `analyze` as a user meets them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import int8calib
from int8calib.cli.main import main
from int8calib.images import Preprocess
from int8calib.images.decode import read_image
from int8calib.table import write_table
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

CLASSES = ["cat", "dog", "emu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two tables, and seven images in class folders, one of them broken."""
    folder = tmp_path_factory.mktemp("job")
    net = int8calib.load_caffe(*make_model(folder, NET))
    rng = np.random.default_rng(7)
    images = rng.normal(0, 60, (5, 3, 37, 29)).astype(np.float32)
    fine = int8calib.calibrate(net, lambda: iter([{"data": images}])).table
    rows = [replace(row, bottom_scale=row.bottom_scale / 30) for row in fine.layers]
    write_table(folder / "fine.table", fine)
    write_table(folder / "coarse.table", replace(fine, layers=tuple(rows)))
    lines = []
    for i in range(7):
        name = CLASSES[i % 3]
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (41, 31, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / "images" / name / f"image {i}.png"), noise)
        lines.append(f"image {i}.png {i % 3}\n")
    (folder / "images" / "cat" / "broken.jpg").write_bytes(b"no picture")
    (folder / "labels.txt").write_text("# name index\n\n" + "".join(lines) + "broken.jpg 0\n")
    return folder


def arguments(folder: Path, command: str, *more: str) -> list[str]:
    return [
        *(command, "--proto", str(folder / "net.prototxt")),
        *("--model", str(folder / "net.caffemodel"), "--images", str(folder / "images")),
        *("--mean", "104", "117", "123", "--norm", "0.5", "--table", str(folder / "fine.table")),
        *more,
    ]


def result_of(capsys: pytest.CaptureFixture[str]) -> dict:
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def expected_scores(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The float net's scores and the labels of the readable images."""
    net = int8calib.load_caffe(folder / "net.prototxt", folder / "net.caffemodel")
    preprocess = Preprocess((3, 37, 29), mean=[104, 117, 123], norm=[0.5])
    scores, labels = [], []
    for path in sorted((folder / "images").rglob("*.png")):
        (top,) = net.forward({"data": preprocess(read_image(path))[None]}).values()
        scores.append(top[0])
        labels.append(CLASSES.index(path.parent.name))
    return np.array(scores), np.array(labels)


@pytest.mark.parametrize("labels", ["labels.txt", "images"])
def test_evaluate_with_labels_and_two_tables(
    labels: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--labels", str(folder / labels), "--table", str(folder / "coarse.table")]
    assert main(arguments(folder, "evaluate", *more, "--topk", "1", "3", "--json")) == 0
    found = result_of(capsys)
    scores, known = expected_scores(folder)
    assert found["images"] == 7
    assert found["float"]["topk"]["1"]["hits"] == (scores.argmax(axis=1) == known).sum()
    best = np.argsort(-scores, axis=1)[:, :3]
    assert found["float"]["topk"]["3"]["hits"] == (best == known[:, None]).any(axis=1).sum()
    assert np.sum(found["float"]["confusion"]) == 7
    names = [Path(table["name"]).name for table in found["tables"]]
    assert names == ["fine.table", "coarse.table"]
    fine, coarse = (table["blobs"][0]["sqnr"] for table in found["tables"])
    assert fine > coarse


def test_evaluate_prints_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["--labels", str(folder / "labels.txt")]
    assert main(arguments(folder, "evaluate", *labels)) == 0
    said = capsys.readouterr()
    for words in ("7 images", "top-1 %", "top-5 %", "same top-1 %", "SQNR dB", "fine.table"):
        assert words in said.out
    assert "boxes" not in said.out
    assert "broken.jpg" in said.err


def test_evaluate_without_labels_shows_agreement(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, "evaluate", "--json", "--batch", "3", "--workers", "1")) == 0
    found = result_of(capsys)
    assert found["float"] is None
    assert found["tables"][0]["accuracy"] is None
    assert found["tables"][0]["agreement"]["total"] == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image 0.png 0\n", "has no label for the image"),
        ("image 0.png cat\n", "labels.txt:1"),
        ("3\n", "labels.txt:1"),
        (None, "cannot be read"),
    ],
)
def test_bad_labels_are_one_line(
    text: str | None, words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    if text is not None:
        labels.write_text(text)
    assert main(arguments(folder, "evaluate", "--quiet", "--labels", str(labels))) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_folder_without_classes_has_no_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, "evaluate", "--quiet", "--labels", str(tmp_path))) == 2
    assert "class folders" in capsys.readouterr().err
    (tmp_path / "zebra").mkdir()
    assert main(arguments(folder, "evaluate", "--quiet", "--labels", str(tmp_path))) == 2
    assert "lies in none of its class folders zebra" in capsys.readouterr().err


def test_analyze_shows_both_orders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "analyze", "--sensitivity", "3")) == 0
    said = capsys.readouterr()
    for words in (
        "isolated dB",
        "accumulated dB",
        "clipped error %",
        "over 3 images, by its effect",
    ):
        assert words in said.out
    assert "cost: as" in said.err
    assert main(arguments(folder, "analyze", "--sensitivity", "0", "--json", "--quiet")) == 0


def test_analyze_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "analyze", "--json")) == 0
    found = result_of(capsys)
    assert found["images"] == found["sensitivity_images"] == 7
    names = {layer["name"] for layer in found["layers"]}
    assert names == set(found["by_sensitivity"]) == {"conv1", "dw", "pw", "left", "fc"}
    own = [layer["isolated_sqnr"] for layer in found["layers"]]
    assert own == sorted(own)


@pytest.mark.parametrize("command", ["evaluate", "analyze"])
def test_a_table_of_another_model_is_refused(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.table"
    other.write_text("nobody_param_0 1 2 3\nnobody 4\n")
    words = arguments(folder, command, "--quiet")
    words[words.index("--table") + 1] = str(other)
    assert main(words) == 2
    assert "another model" in capsys.readouterr().err
