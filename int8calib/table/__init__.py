"""Calibration tables: read, written, checked and compared, in all formats."""

from __future__ import annotations

from int8calib.table.check import check_table
from int8calib.table.diff import DiffRow, diff_tables
from int8calib.table.files import (
    convert_table,
    read_table,
    read_table_lenient,
    read_text,
    write_table,
)
from int8calib.table.formats import FORMATS, Format, detect_format, get_format
from int8calib.table.model import (
    BottomEvidence,
    CalibrationTable,
    LayerScales,
    Requirement,
    RowRequirement,
)
from int8calib.table.rules import Finding, Scan

__all__ = [
    "FORMATS",
    "BottomEvidence",
    "CalibrationTable",
    "DiffRow",
    "Finding",
    "Format",
    "LayerScales",
    "Requirement",
    "RowRequirement",
    "Scan",
    "check_table",
    "convert_table",
    "detect_format",
    "diff_tables",
    "get_format",
    "read_table",
    "read_table_lenient",
    "read_text",
    "write_table",
]
