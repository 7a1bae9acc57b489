"""Read and write table files, in any format."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

from int8calib.errors import TableError
from int8calib.files import read_bounded, write_atomic
from int8calib.limits import MAX_TABLE_BYTES
from int8calib.table.formats import detect_format, get_format
from int8calib.table.model import CalibrationTable, require_table
from int8calib.table.rules import Scan

_OTHER_FILES = {
    rb"(name|input) *: *[\"']|layers? *:? *\{": "a prototxt",
    rb"7767517$": "an ncnn structure file",
    rb"(?i:<!doctype|<html|<\?xml)": "an HTML or XML page",
    rb"PK\x03\x04": "a .npz or .zip file",
}
"""What is given in place of a table by mistake, told by its first line that is no comment."""


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a table file; raises TableError when it is missing or no text."""
    try:
        data = read_bounded(path, MAX_TABLE_BYTES, pipes=True)
    except FileNotFoundError:
        raise TableError(f"{Path(path)}: no such file") from None
    except OSError as error:
        message = f"{Path(path)}: cannot be read: {error.strerror or error}"
        raise TableError(message) from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TableError(f"{Path(path)}: is UTF-16 text; save it as UTF-8")
    lines = (line.strip() for line in data[:4096].split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    for pattern, what in _OTHER_FILES.items():
        if re.match(pattern, first):
            raise TableError(f"{Path(path)}: is {what}; expected a calibration table")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{Path(path)}:{line}: byte {data[error.start]:#04x} is no UTF-8 text"
        raise TableError(message) from None


def read_table(path: str | os.PathLike[str], format: str | None = None) -> CalibrationTable:
    """Read a table file strictly: any error in it is raised.

    Parameters
    ----------
    path : path
        The file.
    format : str, optional
        ``ncnn``, ``tool``, ``tool-v1``, ``tensorrt`` or ``json``; told from the content otherwise.

    Returns
    -------
    CalibrationTable

    Raises
    ------
    TableError
        ``path:line: ...`` for what breaks a rule of the format, and a file that cannot be read.
    OptionError
        For an unknown format.
    """
    text = read_text(path)
    chosen = detect_format(text) if format is None else get_format(format)
    return chosen.read(text, str(Path(path)))


def read_table_lenient(path: str | os.PathLike[str], format: str | None = None) -> Scan:
    """Read the usable rows of a table file, with all findings about the others.

    Parameters
    ----------
    path : path
        The file.
    format : str, optional
        As in `read_table`.

    Returns
    -------
    Scan

    Raises
    ------
    TableError
        For a file that cannot be read; never for its content.
    OptionError
        For an unknown format.
    """
    text = read_text(path)
    chosen = detect_format(text) if format is None else get_format(format)
    return chosen.scan(text)


def write_table(
    path: str | os.PathLike[str], table: CalibrationTable, format: str = "ncnn"
) -> None:
    """Write a table to a file, whole or not at all.

    Parameters
    ----------
    path : path
        The file.
    table : CalibrationTable
        The table.
    format : str
        ``ncnn``, ``tool``, ``tool-v1``, ``tensorrt`` or ``json``.

    Raises
    ------
    TableError
        For what the format cannot hold.
    OutputError
        Where the file cannot be written.
    OptionError
        For an unknown format, and something that is no table.
    """
    require_table(table)
    text = get_format(format).write(table)
    write_atomic(path, text)


def convert_table(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    source_format: str | None = None,
    target_format: str = "ncnn",
) -> CalibrationTable:
    """Write a table file in another format; nothing is invented.

    Parameters
    ----------
    source, target : path
        The file to read, strictly, and the one to write.
    source_format : str, optional
        As in `read_table`.
    target_format : str
        As in `write_table`.

    Returns
    -------
    CalibrationTable
        What `source` holds.

    Raises
    ------
    TableError
        As `read_table`; and for what `target_format` needs and `source` does not hold.
    OutputError
        Where the file cannot be written.
    OptionError
        For an unknown format.
    """
    table = read_table(source, source_format)
    try:
        write_table(target, table, target_format)
    except TableError as error:
        raise TableError(f"{Path(source)}: no {target_format} table: {error}") from error
    return table
