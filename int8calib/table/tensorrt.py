"""The tensorrt format: a calibration cache that TensorRT reads.

A header line `TRT-<version>-<calibrator>`, then `<blob>: <hex>` where hex are the eight digits of
the scale as a big-endian IEEE 754 32-bit float; the scale is threshold / 127, so it is 1 over
ours (format: the README of TensorRT's sampleINT8, section on the calibration file, which shows
`prob: 3c010a14`, that is 1.00024/127, for a softmax). TensorRT takes a cache only where version and
calibrator of the header fit the build: `table.meta["tensorrt_header"]` chooses another header.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from types import MappingProxyType

from int8calib.errors import TableError
from int8calib.parsing import BOM
from int8calib.table.model import CalibrationTable
from int8calib.table.rules import Finding, Scan, scale_problem

SUMMARY = "a TensorRT calibration cache: one scale for each blob, in hex"
HEADER = "TRT-8601-EntropyCalibration2"
_HEADER = re.compile(r"TRT-\w+-\w+", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]{1,8}", re.ASCII)


def write(table: CalibrationTable) -> str:
    """The cache for `table.blob_scales`, or for the bottoms of its layers when there are none.

    Raises TableError when neither the blob scales nor the names of the bottoms are there, when
    two layers give one blob different scales, or when a name or scale cannot be written.
    """
    header = table.meta.get("tensorrt_header", HEADER)
    if not isinstance(header, str) or not _HEADER.fullmatch(header):
        raise TableError(f"tensorrt_header is {header!r}, a line such as {HEADER} is right")
    rows = [f"{header}\n"]
    for name, scale in _blob_scales(table).items():
        if not name.strip() or any(c in name for c in "\r\n"):
            raise TableError(f"blob {name!r}: a name without line breaks is needed")
        problem = scale_problem(scale) or scale_problem(1 / scale)
        if problem is not None:
            raise TableError(f"blob {name}: {problem}")
        rows.append(f"{name}: {struct.pack('>f', 1 / scale).hex()}\n")
    return "".join(rows)


def scan(text: str) -> Scan:
    """The blob scales of `text`, and all its problems; the header is kept in `meta`."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    findings: list[Finding] = []
    blobs: dict[str, float] = {}
    if not _HEADER.fullmatch(lines[0].strip()):
        message = f"the first line is no header such as {HEADER}"
        if lines[0].startswith(BOM):
            message = "a byte order mark, which makes the first line no header of TensorRT"
        return Scan(CalibrationTable(()), (Finding("error", 1, None, message),))
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        # Names may hold colons and spaces: the last colon is the separator.
        name, _, digits = line.rpartition(":")
        value = _scale(digits.strip())
        problem = f"{line[:60]!r}, <blob>: <hex digits> is right" if not name.strip() else None
        if problem is None and isinstance(value, str):
            problem = f"{name}: {value}"
        if problem is None and name in blobs:
            problem = f"{name} stands more than once"
        if problem is not None or isinstance(value, str):
            findings.append(Finding("error", number, None, str(problem)))
        else:
            blobs[name] = value
    meta = MappingProxyType({"tensorrt_header": lines[0].strip()})
    return Scan(CalibrationTable((), MappingProxyType(blobs), meta), tuple(findings))


def _scale(digits: str) -> float | str:
    """Our scale (127 over threshold) from TensorRT's hex digits, or what is wrong with them."""
    if not _HEX.fullmatch(digits):
        return f"{digits[:40]!r} are not up to eight hex digits"
    value: float = struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0]
    return scale_problem(value) or scale_problem(1 / value) or 1 / value


def _blob_scales(table: CalibrationTable) -> Mapping[str, float]:
    if table.blob_scales:
        return table.blob_scales
    if not table.layers:
        raise TableError("the table holds no blob scales, and the tensorrt format needs them")
    blobs: dict[str, float] = {}
    for layer in table.layers:
        if layer.evidence is None:
            raise TableError(
                f"layer {layer.name}: the name of its bottom blob is missing, and the tensorrt "
                "format is keyed by blob (a table made by calibrating, or in json, knows it)"
            )
        known = blobs.setdefault(layer.evidence.blob, layer.bottom_scale)
        if known != layer.bottom_scale:
            raise TableError(
                f"layer {layer.name}: scale {layer.bottom_scale:.9g} for its bottom blob "
                f"{layer.evidence.blob}, another layer has {known:.9g}; one scale is right"
            )
    return blobs
