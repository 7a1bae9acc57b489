"""Labeled boxes from COCO's JSON and VOC's XML, written here by hand from the same boxes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from int8calib.cli.boxes import read_boxes, read_names
from int8calib.cli.main import main
from int8calib.demo import DETECTOR_CAFFEMODEL, DETECTOR_PROTOTXT, MEAN, NORM, scenes
from int8calib.errors import ImageError

NAMES = ("background", "cat", "dog")
# Pixels from 0 on, the last one not included: left, top, right, bottom.
BOXES = {
    "a/one.jpg": ((200, 100), [("cat", (10, 20, 60, 100), False), ("dog", (0, 0, 200, 50), True)]),
    "two.jpg": ((50, 40), [("dog", (5, 4, 25, 12), False)]),
    "empty.jpg": ((64, 64), []),
}


def coco() -> dict[str, Any]:
    images, annotations = [], []
    for number, (name, ((width, height), boxes)) in enumerate(BOXES.items()):
        images.append({"id": number + 7, "file_name": name, "width": width, "height": height})
        for label, (left, top, right, bottom), hard in boxes:
            annotations.append(
                {
                    "image_id": number + 7,
                    "category_id": {"cat": 17, "dog": 18}[label],
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": int(hard),
                }
            )
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def voc(folder: Path) -> Path:
    for name, ((width, height), boxes) in BOXES.items():
        objects = "".join(
            f"<object><name>{label}</name><difficult>{int(hard)}</difficult><bndbox>"
            f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
            "</bndbox></object>"
            for label, (left, top, right, bottom), hard in boxes
        )
        path = (folder / name).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        path.write_text(f"<annotation>{size}{objects}</annotation>")
    return folder


def test_both_forms_give_the_same_parts_of_the_picture(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(coco()))
    by_name = read_boxes(str(tmp_path / "b.json"), NAMES)
    by_id = read_boxes(str(tmp_path / "b.json"))
    by_xml = read_boxes(str(voc(tmp_path / "xml")), NAMES)
    for name, ((width, height), boxes) in BOXES.items():
        for asked in (name, Path(name).name, f"elsewhere/{Path(name).name}"):
            found = by_name(asked)
            assert by_xml(asked) == found
            assert [t.label for t in by_id(asked)] == [t.label + 16 for t in found]
            assert len(found) == len(boxes)
            for truth, (label, corners, hard) in zip(found, boxes, strict=True):
                assert NAMES[truth.label] == label
                assert truth.ignored == hard
                sides = (width, height, width, height)
                expected = [c / s for c, s in zip(corners, sides, strict=True)]
                assert truth.box == pytest.approx(expected)


def test_an_image_that_is_not_there_or_not_clear_is_refused(tmp_path: Path) -> None:
    content = coco()
    content["images"].append({**content["images"][1], "id": 99, "file_name": "b/one.jpg"})
    (tmp_path / "b.json").write_text(json.dumps(content))
    boxes_of = read_boxes(str(tmp_path / "b.json"))
    assert len(boxes_of("a/one.jpg")) == 2
    with pytest.raises(ImageError, match="several images named one"):
        boxes_of("one.jpg")
    with pytest.raises(ImageError, match="no boxes for the image three"):
        boxes_of("three.jpg")
    with pytest.raises(ImageError, match="no boxes for the image three"):
        read_boxes(str(voc(tmp_path / "xml")), NAMES)("three.jpg")


def changed(**changes: Any) -> str:
    """COCO's text with values replaced, by paths as `images/0/width`."""
    content = copy.deepcopy(coco())
    for path, value in changes.items():
        *steps, last = (int(x) if x.isdigit() else x for x in path.split("/"))
        inner: Any = content
        for step in steps:
            inner = inner[step]
        inner[last] = value
    return json.dumps(content)


WRONG_COCO = {
    "": "expected COCO's JSON",
    "[]": "expected an object",
    "{}": "has no 'categories'",
    changed(images=3): "images is 3; expected an array",
    changed(annotations=[[]]): r"annotations\[0\]: it is \[\]; expected an object",
    changed(**{"images/0/width": 0}): "width is 0; expected a whole number from 1",
    changed(**{"images/0/width": True}): "width is True",
    changed(**{"images/0/height": 1e40}): "height is 1e",
    changed(**{"images/1/id": 7}): "an image of this id",
    changed(**{"images/1/file_name": 5}): "file_name is 5; expected a text",
    changed(**{"annotations/0/image_id": 5}): "the id of one of the images",
    changed(**{"annotations/0/category_id": 1}): "whose name --names has",
    changed(**{"annotations/0/category_id": 77}): "whose name --names has",
    changed(**{"annotations/0/bbox": [1, 2, 3]}): "4 numbers",
    changed(**{"annotations/0/bbox": [1, 2, 3, "4"]}): "4 numbers",
    changed(**{"annotations/0/bbox": [1, 2, -3, 4]}): "at least 0",
    changed(**{"annotations/0/bbox": [1, 2, 3, 10**30]}): "4 numbers",
    changed(**{"annotations/0/iscrowd": 2}): "iscrowd is 2",
}


@pytest.mark.parametrize("text", WRONG_COCO)
def test_bad_json_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(ImageError, match=WRONG_COCO[text]) as raised:
        read_boxes(str(path), NAMES)
    assert "b.json" in str(raised.value)


SIZE = "<size><width>9</width><height>9</height></size>"
BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
WRONG_VOC = {
    "": "is no XML",
    "<annotation>": "is no XML",
    "<annotation/>": "size/width is",
    f"<!DOCTYPE x [<!ENTITY e 'e'>]><annotation>{SIZE}</annotation>": "DOCTYPE",
    f"<a>{SIZE.replace('9', '0')}</a>": "size/width is '0'",
    f"<a>{SIZE.replace('9', 'nan')}</a>": "size/width is 'nan'",
    f"<a>{SIZE}<object>{BOX}</object></a>": "the class ''",
    f"<a>{SIZE}<object><name>cow</name>{BOX}</object></a>": "the class 'cow'",
    f"<a>{SIZE}<object><name>cat</name></object></a>": "bndbox/xmin is ''",
    f"<a>{SIZE}<object><name>cat</name>{BOX.replace('5', '1e99')}</object></a>": "bndbox/xmax",
    f"<a>{SIZE}<object><name>cat</name>{BOX.replace('5', '0')}</object></a>": "before it begins",
    f"<a>{SIZE}<object><name>cat</name>{BOX}<difficult>x</difficult></object></a>": "difficult is",
}


@pytest.mark.parametrize("text", WRONG_VOC)
def test_bad_xml_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "one.xml").write_text(text)
    with pytest.raises(ImageError, match=WRONG_VOC[text]) as raised:
        read_boxes(str(tmp_path), NAMES)("one.jpg")
    assert "one.xml" in str(raised.value)


def test_a_folder_needs_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="expected one an image"):
        read_boxes(str(tmp_path), NAMES)
    with pytest.raises(ImageError, match="--names"):
        read_boxes(str(voc(tmp_path)))
    with pytest.raises(ImageError, match="cannot be read"):
        read_boxes(str(tmp_path / "nosuch.json"))


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


def evaluated(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    words = [*MODEL, "--images", str(folder / "images"), *PIXELS, "--json"]
    assert main(["evaluate", *words, "--table", str(folder / "net.table"), *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_detector_is_evaluated_against_labels(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = evaluated(folder, capsys, "--boxes", str(folder / "boxes.json"))
    names = ("--names", str(folder / "names.txt"))
    two = evaluated(folder, capsys, "--boxes", str(folder / "xml"), *names)
    assert one["kind"]["name"] == "detector"
    assert two["float_boxes"]["recall"] == one["float_boxes"]["recall"]
    assert two["float_boxes"]["mean_precision"] == pytest.approx(
        one["float_boxes"]["mean_precision"]
    )
    # It was trained on such scenes.
    assert 0.6 < one["float_boxes"]["mean_precision"] <= 1
    assert 0.4 < one["tables"][0]["against_labels"]["mean_precision"] <= 1
    assert 0.5 < one["tables"][0]["against_float"]["mean_precision"] <= 1


def test_the_runtime_gives_nearly_the_same_boxes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    words = ("--boxes", str(folder / "boxes.json"))
    simulated = evaluated(folder, capsys, *words)
    real = evaluated(folder, capsys, *words, "--runtime")
    before, after = (found["float_boxes"]["mean_precision"] for found in (simulated, real))
    assert after == pytest.approx(before, abs=0.01)
    before, after = (
        found["tables"][0]["against_float"]["mean_precision"] for found in (simulated, real)
    )
    assert after == pytest.approx(before, abs=0.1)


def test_an_ncnn_model_is_judged_in_the_same_way(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    pair = [str(tmp_path / f"net.{end}") for end in ("param", "bin")]
    assert main(["convert", *MODEL, "--output", *pair, "--quiet"]) == 0
    words = ["--images", str(folder / "images"), *PIXELS, "--table", str(folder / "net.table")]
    words += ["--boxes", str(folder / "boxes.json"), "--json"]
    assert main(["evaluate", "--param", pair[0], "--bin", pair[1], *words]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = evaluated(folder, capsys, "--boxes", str(folder / "boxes.json"), "--runtime")
    assert found["kind"]["name"] == "detector"
    assert found["float_boxes"] == expected["float_boxes"]
    assert found["tables"][0]["against_labels"] == expected["tables"][0]["against_labels"]
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
    found = evaluated(folder, capsys, "--boxes", str(folder / "boxes.json"))
    precision = f"{100 * found['tables'][0]['against_labels']['mean_precision']:.1f}"
    assert main(["evaluate", *words]) == 0
    shown = capsys.readouterr()
    assert precision in shown.out
    assert "mAP %" in shown.out
    assert "compared as detector: detection_out made by DetectionOutput" in shown.err
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.html"
    few = ("--samples", "1", "--sensitivity", "0", "--quiet", "--limit", "12")
    assert main(["report", *words, *few, "--output", str(page)]) == 0
    html = page.read_text()
    assert "mAP in INT8 (float:" in html
    assert "recall of them" in html
    assert "Compared as detector" in html
