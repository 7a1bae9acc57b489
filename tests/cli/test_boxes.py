"""Detectors judged by labeled boxes: `--boxes` of the commands, in COCO's and in VOC's form."""

from __future__ import annotations

import contextlib
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from int8calib.cli.labels import read_names
from int8calib.cli.main import main
from int8calib.demo import DETECTOR_CAFFEMODEL, DETECTOR_PROTOTXT, MEAN, NORM, scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with their boxes in both forms, a table of the demo's detector, names of classes."""
    folder = tmp_path_factory.mktemp("scenes")
    images, annotations = [], []
    size = scenes.SIZE
    for number, (path, truths) in enumerate(scenes.write_scenes(folder / "images", 12, 5)):
        images.append({"id": number, "file_name": path.name, "width": size, "height": size})
        objects = ""
        for label, box in truths:
            left, top, right, bottom = (round(size * x) for x in box)
            annotations.append(
                {
                    "image_id": number,
                    "category_id": label,
                    "bbox": [left, top, right - left, bottom - top],
                }
            )
            corners = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
            inner = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
            objects += (
                f"<object><name>{scenes.CLASSES[label]}</name><bndbox>{inner}</bndbox></object>"
            )
        (folder / "xml").mkdir(exist_ok=True)
        sides = f"<size><width>{size}</width><height>{size}</height></size>"
        (folder / "xml" / f"{path.stem}.xml").write_text(
            f"<annotation>{sides}{objects}</annotation>"
        )
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (folder / "names.txt").write_text("\n".join(scenes.CLASSES))
    words = [*MODEL, "--images", str(folder / "images"), *PIXELS, "--quiet"]
    assert main(["calibrate", *words, "--output", str(folder / "net.table")]) == 0
    return folder


MODEL = ("--proto", str(DETECTOR_PROTOTXT), "--model", str(DETECTOR_CAFFEMODEL))
PIXELS = ("--mean", *map(str, MEAN), "--norm", str(NORM))


@cache
def evaluated(folder: Path, *more: str) -> dict[str, Any]:
    words = [*MODEL, "--images", str(folder / "images"), *PIXELS, "--json"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(["evaluate", *words, "--table", str(folder / "net.table"), *more]) == 0
    found: dict[str, Any] = json.loads(text.getvalue())
    return found


def test_a_detector_is_evaluated_against_labels(folder: Path) -> None:
    one = evaluated(folder, "--boxes", str(folder / "boxes.json"))
    names = ("--names", str(folder / "names.txt"))
    two = evaluated(folder, "--boxes", str(folder / "xml"), *names)
    assert one["kind"]["name"] == "detector"
    assert two["float_boxes"]["recall"] == one["float_boxes"]["recall"]
    assert two["float_boxes"]["mean_precision"] == pytest.approx(
        one["float_boxes"]["mean_precision"]
    )
    # It was trained on such scenes.
    assert 0.6 < one["float_boxes"]["mean_precision"] <= 1
    assert 0.4 < one["tables"][0]["against_labels"]["mean_precision"] <= 1
    assert 0.5 < one["tables"][0]["against_float"]["mean_precision"] <= 1


def test_the_runtime_gives_nearly_the_same_boxes(folder: Path) -> None:
    pytest.importorskip("ncnn")
    words = ("--boxes", str(folder / "boxes.json"))
    simulated = evaluated(folder, *words)
    real = evaluated(folder, *words, "--runtime")
    before, after = (found["float_boxes"]["mean_precision"] for found in (simulated, real))
    assert after == pytest.approx(before, abs=0.01)
    before, after = (
        found["tables"][0]["against_float"]["mean_precision"] for found in (simulated, real)
    )
    assert after == pytest.approx(before, abs=0.1)


@pytest.mark.parametrize(
    ("engine", "same"), [(("--engine", "runtime"), ("--runtime",)), (("--engine", "numpy"), ())]
)
def test_an_ncnn_model_is_judged_in_the_same_way(
    engine: tuple[str, ...],
    same: tuple[str, ...],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ncnn")
    pair = [str(tmp_path / f"net.{end}") for end in ("param", "bin")]
    assert main(["convert", *MODEL, "--output", *pair, "--quiet"]) == 0
    words = ["--images", str(folder / "images"), *PIXELS, "--table", str(folder / "net.table")]
    words += ["--boxes", str(folder / "boxes.json"), "--json"]
    assert main(["evaluate", "--param", pair[0], "--bin", pair[1], *engine, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = evaluated(folder, "--boxes", str(folder / "boxes.json"), *same)
    assert found["kind"]["name"] == "detector"
    pairs = [(found["float_boxes"], expected["float_boxes"])]
    pairs += [(each["tables"][0]["against_labels"] for each in (found, expected))]
    for mine, other in pairs:
        assert mine["recall"] == other["recall"]
        assert mine["mean_precision"] == pytest.approx(other["mean_precision"], abs=1e-3)
    assert found["tables"][0]["boxes"] == expected["tables"][0]["boxes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--boxes", "{folder}/names.txt"), "expected COCO's JSON"),
        (("--boxes", "{folder}/xml"), "--names"),
        (("--names", "{folder}/names.txt"), "only --boxes need"),
        (("--boxes", "x", "--labels", "y"), "give one"),
        (("--boxes", "{folder}/boxes.json", "--resize", "crop"), "does not see the whole picture"),
        (("--boxes", "{folder}/boxes.json", "--transpose"), "leave it out"),
        (("--boxes", "{folder}/boxes.json", "--outputs", "conv5_conf"), "list of detections"),
        (("--peak", "0"), "peak 0"),
        (
            ("--peak", "255"),
            "--peak: is for networks of the kind image-to-image, and this one is of",
        ),
        (("--box-score", "0.4", "--kind", "regressor"), "--box-score: is for networks of the kind"),
        (("--kind", "classifier"), "name the blob that is"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    given = [word.format(folder=folder) for word in words]
    base = [*MODEL, "--images", str(folder / "images"), *PIXELS, "--quiet"]
    assert main(["evaluate", *base, "--table", str(folder / "net.table"), *given]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error


def test_names_are_lines(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_bytes(b"\xef\xbb\xbfbackground\r\n cat \n")
    assert read_names(str(tmp_path / "n.txt")) == ("background", "cat")


def test_a_page_and_a_text_hold_the_figures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*MODEL, "--images", str(folder / "images"), *PIXELS]
    words += ["--table", str(folder / "net.table"), "--boxes", str(folder / "boxes.json")]
    found = evaluated(folder, "--boxes", str(folder / "boxes.json"))
    precision = f"{100 * found['tables'][0]['against_labels']['mean_precision']:.1f}"
    assert main(["evaluate", *words]) == 0
    shown = capsys.readouterr()
    assert precision in shown.out
    assert "mAP %" in shown.out
    assert "compared as detector: detection_out made by DetectionOutput" in shown.err
    pytest.importorskip("matplotlib")
    page, few_rows = tmp_path / "page.html", tmp_path / "few.table"
    # The page takes its time to draw each row: those of two layers are enough.
    rows = (folder / "net.table").read_text().splitlines(keepends=True)
    few_rows.write_text("".join(row for row in rows if row.startswith(("conv0", "conv7_conf"))))
    few = ("--samples", "1", "--sensitivity", "0", "--quiet")
    words[words.index("--table") + 1] = str(few_rows)
    assert main(["report", *words, *few, "--output", str(page)]) == 0
    html = page.read_text()
    assert "mAP in INT8 (float:" in html
    assert "recall of them" in html
    assert "Compared as detector" in html
