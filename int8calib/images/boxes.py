"""The labeled boxes of each image, from COCO's JSON or a folder of VOC's XML files."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from int8calib.errors import ImageError
from int8calib.files import file_mode, read_bounded
from int8calib.limits import MAX_ANNOTATION_BYTES
from int8calib.parsing import decode_text, parse_json

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Corners = tuple[float, float, float, float]


class Truth(NamedTuple):
    """A labeled box.

    Attributes
    ----------
    label : int
        Its class, as the network numbers it.
    box : tuple of 4 floats
        Left, top, right, bottom, as parts of the picture.
    ignored : bool
        Whether it counts neither as found nor as missed, as VOC's difficult objects and COCO's
        crowds.
    """

    label: int
    box: Corners
    ignored: bool = False


BoxesOf = Callable[[str], Sequence[Truth]]
MAX_XML_BYTES = 1 << 20
"""Bytes of one image's XML file: 1 MiB, several thousand boxes."""
MAX_SIDE = 1 << 27
"""Pixels of a side, and the largest coordinate of a box."""
MAX_LABEL = 10**9


def read_boxes(where: str, names: Sequence[str] = ()) -> BoxesOf:
    """Read labeled boxes, and return what gives an image's boxes by its name.

    Parameters
    ----------
    where
        A .json file in COCO's form, or a folder of .xml files in PASCAL VOC's, one an image.
    names
        The names of the network's classes, by label. Without them COCO's category ids are the
        labels; VOC, which knows names only, needs them.

    Returns
    -------
    BoxesOf
        Corners are parts of the picture. It raises `ImageError` for an image that the annotations
        do not have, or where it is not clear which is meant.

    Raises
    ------
    ImageError
        For annotations that cannot be read, or hold anything else; it names file and place.
    """
    path = Path(where)
    try:
        if stat.S_ISDIR(file_mode(path)):
            return _from_voc(path, names)
        table = _read_coco(path, names)
    except OSError as error:
        raise ImageError(f"{path}: boxes cannot be read: {error.strerror or error}") from None
    key_of = _lookup(path, table)
    return lambda name: table[key_of(name)]


def _lookup(path: Path, known: Collection[str], *, stems: bool = False) -> Callable[[str], str]:
    """What finds an image among `known` by its name, or by its last part where that is clear."""
    short: dict[str, str | None] = {}
    for name in known:
        last = PurePosixPath(name).name
        short[last] = None if last in short else name

    def key_of(name: str) -> str:
        image = PurePosixPath(name.strip().replace("\\", "/"))
        key = str(image.with_suffix("") if stems and image.name else image)
        if key in known:
            return key
        last = PurePosixPath(key).name
        found = short.get(last)
        if found is None and last in short:
            raise ImageError(f"{path}: has boxes of several images named {last}")
        if found is None:
            raise ImageError(f"{path}: has no boxes for the image {name}")
        return found

    return key_of


class _Entry:
    """A JSON object of an annotation file, and its place; methods check what they give."""

    def __init__(self, path: Path, where: str, value: object) -> None:
        self.path, self.where = path, where
        if not isinstance(value, dict):
            raise self.wrong("it", value, "an object")
        self.value = value

    def wrong(self, what: str, value: object, expected: str) -> ImageError:
        shown = ascii(value)
        shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
        return ImageError(f"{self.path}: {self.where}: {what} is {shown}; expected {expected}")

    def get(self, key: str) -> Any:
        if key not in self.value:
            raise ImageError(f"{self.path}: {self.where}: has no {key!r}, as COCO's form demands")
        return self.value[key]

    def whole(self, key: str, most: int, least: int = 0) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, value, f"a whole number from {least} to {most}")
        return value

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, value, "a text")
        return value

    def entries(self, key: str) -> Iterator[_Entry]:
        value = self.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, value, "an array")
        for i, each in enumerate(value):
            yield _Entry(self.path, f"{key}[{i}]", each)


def _read_coco(path: Path, names: Sequence[str]) -> dict[str, list[Truth]]:
    """The boxes of each file name; raises ImageError and OSError."""
    try:
        value = parse_json(read_bounded(path, MAX_ANNOTATION_BYTES))
    except ValueError as error:
        raise ImageError(
            f"{path}: boxes cannot be read: {str(error)[:100]}; expected COCO's JSON, or a folder "
            "of VOC's XML files"
        ) from None
    root = _Entry(path, "the file", value)
    labels: dict[int, int] = {}
    if names:
        for entry in root.entries("categories"):
            name = entry.text("name").strip()
            labels[entry.whole("id", MAX_LABEL)] = names.index(name) if name in names else -1
    sizes: dict[int, tuple[str, int, int]] = {}
    table: dict[str, list[Truth]] = {}
    for entry in root.entries("images"):
        file = entry.text("file_name").strip().replace("\\", "/")
        width, height = (entry.whole(key, MAX_SIDE, 1) for key in ("width", "height"))
        number = entry.whole("id", 1 << 53)
        if number in sizes or file in table:
            raise ImageError(f"{path}: {entry.where}: an image of this id or file_name is above")
        sizes[number] = file, width, height
        table[file] = []
    for entry in root.entries("annotations"):
        image = entry.whole("image_id", 1 << 53)
        if image not in sizes:
            raise entry.wrong("image_id", image, "the id of one of the images")
        category = entry.whole("category_id", MAX_LABEL)
        label = labels.get(category, -1) if names else category
        if label < 0:
            raise entry.wrong("category_id", category, "a category whose name --names has")
        file, width, height = sizes[image]
        crowd = "iscrowd" in entry.value and entry.whole("iscrowd", 1) == 1
        table[file].append(Truth(label, _coco_box(entry, width, height), crowd))
    return table


def _coco_box(entry: _Entry, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, width, height in pixels as corners in parts of the picture."""
    box = entry.get("bbox")
    plain = isinstance(box, list) and len(box) == 4
    if not plain or not all(
        isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= MAX_SIDE for x in box
    ):
        raise entry.wrong("bbox", box, "4 numbers: left, top, width and height in pixels")
    x, y, w, h = map(float, box)
    if w < 0 or h < 0:
        raise entry.wrong("bbox", box, "a width and a height of at least 0")
    return x / width, y / height, (x + w) / width, (y + h) / height


def _from_voc(folder: Path, names: Sequence[str]) -> BoxesOf:
    """The boxes of an image are read when they are asked for first; raises `ImageError`."""
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.xml"))
    }
    if not files:
        raise ImageError(f"{folder}: holds no .xml files; expected one an image, as VOC has them")
    if not names:
        raise ImageError(
            f"{folder}: VOC names classes; say which label each name is, by a file of names, one a "
            "line, the background first (--names)"
        )
    key_of = _lookup(folder, files, stems=True)
    table: dict[str, list[Truth]] = {}

    def boxes_of(name: str) -> Sequence[Truth]:
        key = key_of(name)
        if key not in table:
            table[key] = _read_voc(files[key], names)
        return table[key]

    return boxes_of


def _read_voc(path: Path, names: Sequence[str]) -> list[Truth]:
    """The boxes of one XML file, whose corners are pixels from 1 on, the last included."""
    from xml.etree import ElementTree

    try:
        text = decode_text(read_bounded(path, MAX_XML_BYTES))
        # Entities may unfold to more memory than there is.
        unsafe = "<!DOCTYPE" in text or "<!ENTITY" in text
        root = None if unsafe else ElementTree.fromstring(text)
    except OSError as error:
        raise ImageError(f"{path}: boxes cannot be read: {error.strerror or error}") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise ImageError(f"{path}: is no XML of VOC: {str(error)[:100]}") from None
    if root is None:
        raise ImageError(f"{path}: holds a DOCTYPE or an entity, which VOC's files have not")
    width, height = (_number(path, root, f"size/{key}", 1) for key in ("width", "height"))
    boxes = []
    for entry in root.iter("object"):
        name = (entry.findtext("name") or "").strip()
        if name not in names:
            raise ImageError(
                f"{path}: the class {ascii(name)[:40]} is not among the {len(names)} of --names"
            )
        left, top, right, bottom = (
            _number(path, entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")
        )
        if right < left or bottom < top:
            raise ImageError(f"{path}: a box of {ascii(name)[:40]} ends before it begins")
        difficult = (entry.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise ImageError(f"{path}: difficult is {ascii(difficult)[:40]}; expected 0 or 1")
        corners = (left - 1) / width, (top - 1) / height, right / width, bottom / height
        boxes.append(Truth(names.index(name), corners, difficult == "1"))
    return boxes


def _number(path: Path, entry: Element, key: str, least: float = -MAX_SIDE) -> float:
    """The number in a tag; raises `ImageError` where there is none in range."""
    text = (entry.findtext(key) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= MAX_SIDE:
        raise ImageError(
            f"{path}: {key} is {ascii(text)[:40]}; expected a number from {least:g} to {MAX_SIDE}"
        )
    return value
