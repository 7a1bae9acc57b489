"""The registry of table formats, and how a text's format is told.

A new format is one file with `SUMMARY`, `write(table) -> str` and `scan(text) -> Scan`, and one
row in `FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from int8calib.errors import OptionError
from int8calib.table import json_format, ncnn, tensorrt, tool
from int8calib.table.model import CalibrationTable
from int8calib.table.rules import WEIGHT_MARK, WEIGHT_SUFFIX, Scan, raise_first_error


@dataclass(frozen=True)
class Format:
    """One layout of a table file.

    Attributes
    ----------
    name : str
        What the format is called in options.
    suffix : str
        What names of such files end in.
    write : callable
        Gives the text of a table; raises TableError for what the format cannot hold.
    scan : callable
        Reads a text leniently; never raises for its content.
    summary : str
        The format in one line.
    """

    name: str
    suffix: str
    write: Callable[[CalibrationTable], str]
    scan: Callable[[str], Scan]
    summary: str

    def read(self, text: str, name: str) -> CalibrationTable:
        """Return the table of `text`; raises TableError `name:line: ...` for the first error."""
        result = self.scan(text)
        raise_first_error(result.findings, name)
        return result.table


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Format("ncnn", ".table", ncnn.write, ncnn.scan, ncnn.SUMMARY),
            Format("tool", ".table", tool.write, tool.scan, tool.SUMMARY),
            Format("tool-v1", ".table", tool.write_v1, tool.scan_v1, tool.SUMMARY_V1),
            Format("tensorrt", ".cache", tensorrt.write, tensorrt.scan, tensorrt.SUMMARY),
            Format("json", ".json", json_format.write, json_format.scan, json_format.SUMMARY),
        )
    }
)

# A 64-bit float in full: ten or more significant digits, and not the six decimals of %f.
_LONG = re.compile(r"\d*\.(?!\d{6}$)\d+(?:e[+-]?\d+)?")


def get_format(name: str) -> Format:
    """Return the format `name`; raises OptionError that lists the known ones."""
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(FORMATS)
        raise OptionError(f"table format {name!r} is unknown, known are {known}") from None


def detect_format(text: str) -> Format:
    """Tell the format that `text` most likely has.

    JSON and TensorRT caches show in their first characters. Rows are the reference tool's when a
    number has the digits of a 64-bit float or is a plain 0; of those, a text with blob rows
    that belong to no weight row, and one weight scale in each weight row, is its first version.
    Everything else is ncnn's.
    """
    head = text.lstrip("\ufeff \t\r\n")
    if head.startswith("{"):
        return FORMATS["json"]
    if head.startswith("TRT-"):
        return FORMATS["tensorrt"]
    rows = [line.split() for line in text.split("\n") if line.strip()]
    if not any(_is_tool_number(token) for row in rows for token in row[1:]):
        return FORMATS["ncnn"]
    weights = {row[0].removesuffix(WEIGHT_SUFFIX): row for row in rows if WEIGHT_MARK in row[0]}
    lone_blob = any(WEIGHT_MARK not in row[0] and row[0] not in weights for row in rows)
    if lone_blob and all(len(row) == 2 for row in weights.values()):
        return FORMATS["tool-v1"]
    return FORMATS["tool"]


def _is_tool_number(token: str) -> bool:
    if token in ("0", "0.0"):
        return True
    digits = token.lower().split("e")[0].replace(".", "").lstrip("0")
    return len(digits) > 9 and _LONG.fullmatch(token.lower()) is not None
