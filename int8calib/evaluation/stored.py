"""Read results back from JSON; everything in a file is checked here, before it is used."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import OptionError
from int8calib.evaluation.average_precision import BoxAccuracy
from int8calib.evaluation.kinds import KINDS, NetworkKind
from int8calib.evaluation.measures import BoxAgreement, Share
from int8calib.evaluation.results import (
    FORMAT,
    SCHEMA,
    Accuracy,
    BlobError,
    Evaluation,
    TableResult,
)
from int8calib.files import read_bounded
from int8calib.parsing import parse_json

MAX_BYTES = 64 << 20
"""A larger file is no result: an analysis of 10,000 layers has 4 MB."""
MAX_COUNT = 1 << 53
"""Whole numbers above are not exact in JSON."""
MAX_DECIBELS = 1e5
"""Beyond what float64 sums of squares can give."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

Type = TypeVar("Type")


def read_evaluation(path: str | os.PathLike[str]) -> Evaluation:
    """Read what `int8calib evaluate --json` printed.

    Parameters
    ----------
    path
        The JSON file.

    Returns
    -------
    Evaluation
        The result, complete: `as_dict` gives the file's values again.

    Raises
    ------
    OptionError
        For a file that cannot be read or holds anything else; names the place in it.
    """
    root = read_result(path, "evaluate", FORMAT, SCHEMA)
    float_accuracy = root["float"].maybe(_accuracy)
    ks = None if float_accuracy is None else list(float_accuracy.topk)
    tables = tuple(_table(table, ks) for table in root["tables"].items())
    root["tables"].need_different([table.name for table in tables])
    return Evaluation(
        root["images"].count(minimum=1),
        float_accuracy,
        tables,
        tuple(name.text() for name in root["outputs"].items()),
        tuple(name.text() for name in root["notes"].items()),
        root.fingerprint("network"),
        root["kind"].maybe(_kind),
        root["float_boxes"].maybe(_box_accuracy),
    )


@dataclass(frozen=True)
class Place:
    """A value of a JSON file, and where it stands; each method checks what it returns."""

    file: Path
    command: str
    where: str
    value: Any

    def wrong(self, expected: str) -> OptionError:
        """The error for this value; `expected` says what would be right."""
        shown = ascii(self.value)
        shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
        return self.refused(f"{self.where or 'it'} is {shown}; expected {expected}")

    def refused(self, reason: str) -> OptionError:
        """The error for a file that is wrong as a whole."""
        return OptionError(
            f"{self.file}: not what `int8calib {self.command} --json` prints: {reason}"
        )

    def __getitem__(self, key: str) -> Place:
        """The field `key` of an object."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        if key not in self.value:
            raise self.refused(f"{self.where or 'it'} has no {key!r}")
        where = f"{self.where}.{key}" if self.where else key
        return Place(self.file, self.command, where, self.value[key])

    def fields(self) -> dict[str, Place]:
        """All fields of an object."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return {key: self[key] for key in self.value}

    def items(self) -> list[Place]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            raise self.wrong("an array")
        return [
            Place(self.file, self.command, f"{self.where}[{i}]", value)
            for i, value in enumerate(self.value)
        ]

    def maybe(self, read: Any) -> Any:
        """`read(self)`, or None for null."""
        return None if self.value is None else read(self)

    def text(self) -> str:
        """A text that can be written as UTF-8."""
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        try:
            self.value.encode("utf-8")
        except UnicodeEncodeError:
            raise self.wrong("a text without half a surrogate pair") from None
        return self.value

    def count(self, minimum: int = 0, maximum: int = MAX_COUNT) -> int:
        """A whole number."""
        whole = isinstance(self.value, int) and not isinstance(self.value, bool)
        if not whole or not minimum <= self.value <= maximum:
            raise self.wrong(f"a whole number from {minimum} to {maximum}")
        return int(self.value)

    def number(self, minimum: float = -math.inf, maximum: float = math.inf) -> float:
        """A finite number."""
        plain = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not plain or not abs(self.value) < 1e300 or not minimum <= self.value <= maximum:
            limits = "" if math.isinf(minimum) else f" from {minimum:g} to {maximum:g}"
            raise self.wrong(f"a number{limits}")
        return float(self.value)

    def sqnr(self) -> float:
        """dB; null for infinity."""
        if self.value is None:
            return math.inf
        if self.value in ("-inf", "nan") and isinstance(self.value, str):
            return float(self.value)
        return self.number(-MAX_DECIBELS, MAX_DECIBELS)

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def cosine(self) -> float:
        """A cosine, which rounding may have put a little beyond 1; or NaN."""
        return math.nan if self.value == "nan" else self.number(-1.001, 1.001)

    def share(self) -> Share:
        """Hits out of a total."""
        total = self["total"].count()
        return Share(self["hits"].count(maximum=total), total)

    def fingerprint(self, key: str) -> str:
        """The fingerprint of a network."""
        text = self[key].text()
        if not _FINGERPRINT.fullmatch(text):
            raise self[key].wrong("a SHA-256 of 64 hex digits")
        return text

    def need_different(self, names: list[str]) -> None:
        """Refuse an array in which one of `names` stands twice."""
        seen = set[str]()
        for name in names:
            if name in seen:
                raise self.refused(f"{self.where} holds {ascii(name)[:60]} twice")
            seen.add(name)


def read_result(path: str | os.PathLike[str], command: str, format_: str, schema: int) -> Place:
    """Read a JSON file and check that it is the result of a command.

    Parameters
    ----------
    path
        The file, of at most `MAX_BYTES`.
    command
        The command that prints such files.
    format_, schema
        What its fields `format` and `schema` must be.

    Returns
    -------
    Place
        The outermost object.

    Raises
    ------
    OptionError
        For anything else.
    """
    file = Path(path)
    try:
        value = parse_json(read_bounded(file, MAX_BYTES, pipes=True))
    except OSError as error:
        raise OptionError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise OptionError(f"{file}: is no JSON of int8calib: {str(error)[:100]}") from None
    root = Place(file, command, "", value)
    if root["format"].value != format_:
        raise root["format"].wrong(repr(format_))
    if root["schema"].count() != schema:
        raise root["schema"].wrong(f"{schema}; was it written by another version?")
    return root


def _accuracy(place: Place) -> Accuracy:
    topk: dict[int, Share] = {}
    for key, share in place["topk"].fields().items():
        if not re.fullmatch(r"[1-9][0-9]{0,8}", key):
            raise place["topk"].refused(f"{place.where}.topk has the key {ascii(key)[:40]}")
        topk[int(key)] = share.share()
    if not topk:
        raise place["topk"].wrong("at least one k")
    return Accuracy(topk, place["confusion"].maybe(_confusion))


def _confusion(place: Place) -> NDArray[np.int64]:
    rows = [[cell.count() for cell in row.items()] for row in place.items()]
    if any(len(row) != len(rows) for row in rows):
        raise place.wrong("as many columns as rows")
    return np.array(rows, np.int64).reshape(len(rows), len(rows))


def _table(place: Place, ks: list[int] | None) -> TableResult:
    """One table's result; its accuracies must be those of the float net."""
    accuracy = place["accuracy"].maybe(_accuracy)
    if (None if accuracy is None else list(accuracy.topk)) != ks:
        raise place.refused(f"{place.where}.accuracy and float have different top-k")
    return TableResult(
        place["name"].text(),
        accuracy,
        place["agreement"].maybe(Place.share),
        tuple(map(_blob, place["blobs"].items())),
        place["boxes"].maybe(_boxes),
        place["against_float"].maybe(_box_accuracy),
        place["against_labels"].maybe(_box_accuracy),
    )


def _blob(place: Place) -> BlobError:
    return BlobError(
        place["blob"].text(),
        place["sqnr"].sqnr(),
        place["cosine"].cosine(),
        place["psnr"].maybe(_psnr),
    )


def _psnr(place: Place) -> float:
    """In dB; infinite, which is a text here, where nothing differs."""
    if place.value in ("inf", "-inf") and isinstance(place.value, str):
        return float(place.value)
    return place.number(-MAX_DECIBELS, MAX_DECIBELS)


def _kind(place: Place) -> NetworkKind:
    if place["name"].text() not in KINDS:
        raise place["name"].wrong(f"one of {', '.join(KINDS)}")
    return NetworkKind(place["name"].text(), place["reason"].text(), place["sure"].flag())


def _box_accuracy(place: Place) -> BoxAccuracy:
    mean = place["mean_precision"]
    value = math.nan if mean.value == "nan" else mean.number(0, 1)
    return BoxAccuracy(value, place["recall"].share())


def _boxes(place: Place) -> BoxAgreement:
    counts = place["float"].count(), place["int8"].count()
    return BoxAgreement(place["matched"].count(maximum=min(counts)), *counts)
