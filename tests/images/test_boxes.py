"""Labeled boxes from COCO's JSON and VOC's XML, written here by hand from the same boxes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from int8calib.errors import ImageError
from int8calib.images.boxes import read_boxes

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
