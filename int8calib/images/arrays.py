"""Arrays in .npy and .npz files, their headers checked before memory is taken for the values."""

from __future__ import annotations

import lzma
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import ImageError, UnreadableImageError
from int8calib.files import open_regular
from int8calib.limits import MAX_ARCHIVE_BYTES, MAX_ARRAY_VALUES

# What numpy, zipfile and the decompressors raise for damaged files.
_DAMAGED = (
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    OSError,
    MemoryError,
    RecursionError,
    RuntimeError,  # encrypted, or a compression that zipfile does not know
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True)
class ArrayHeader:
    """What an array file says about its values, which begin at byte `offset`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def count(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all values."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class NpyFile:
    """A .npy file whose header has been read and found to fit the file; values are read later."""

    path: Path
    header: ArrayHeader

    def read(self, row: int | None = None) -> NDArray[Any]:
        """Read the whole array, or its row `row` alone; raises UnreadableImageError."""
        header = self.header
        shape = header.shape if row is None else header.shape[1:]
        count = math.prod(shape)
        if count > MAX_ARRAY_VALUES:
            raise UnreadableImageError(
                f"{self.path}: holds an input of shape {shape}, {count} values; at most "
                f"{MAX_ARRAY_VALUES} are read (the limit)"
            )
        try:
            if header.fortran and row is not None:
                stored = np.memmap(
                    self.path, header.dtype, "r", header.offset, header.shape, order="F"
                )
                return np.array(stored[row])
            size = count * header.dtype.itemsize
            with open_regular(self.path) as file:
                file.seek(header.offset + (row or 0) * size)
                data = file.read(size)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from error
        if len(data) < size:
            raise UnreadableImageError(f"{self.path}: has become shorter while it was read")
        values = np.frombuffer(data, header.dtype)
        return values.reshape(shape, order="F" if header.fortran else "C")


def open_npy(path: Path) -> NpyFile:
    """Read the header of a .npy file; raises UnreadableImageError where it holds no numbers."""
    try:
        with open_regular(path) as file:
            if file.read(4) == b"PK\x03\x04":
                raise UnreadableImageError(f"{path}: is an .npz archive that is named .npy")
            file.seek(0)
            header = _read_header(file)
            size = os.fstat(file.fileno()).st_size
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    _check(str(path), header, size)
    return NpyFile(path, header)


def read_npz(path: Path, blob: str | None) -> NDArray[Any]:
    """Read one array of an .npz file into memory.

    Parameters
    ----------
    path
        The file.
    blob
        The array's name; a file with a single array needs none.

    Returns
    -------
    NDArray
        Of any number type, read-only.

    Raises
    ------
    ImageError
        Where there is no such array, it is damaged, or larger than `MAX_ARCHIVE_BYTES`.
    """
    try:
        with open_regular(path) as file:
            if file.read(6) == b"\x93NUMPY":
                raise ImageError(f"{path}: holds a single array; name it .npy")
            with zipfile.ZipFile(file) as archive:
                return _member(path, archive, blob)
    except _DAMAGED as error:
        raise ImageError(f"{path}: cannot be read as arrays: {_reason(error)}") from error


def numbers(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Turn an array of any number type into float32 values that own their memory.

    Raises UnreadableImageError for values that are not finite, or not after the conversion.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.array(array, np.float32, order="C")
    if not np.isfinite(values).all():
        raise UnreadableImageError(f"{name}: holds values that are not finite in float32")
    return values


def check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Raise UnreadableImageError unless `dtype` is of whole or floating-point numbers."""
    if dtype.kind not in "fiu":
        raise UnreadableImageError(f"{name}: holds {str(dtype)[:60]}, not numbers")


def _member(path: Path, archive: zipfile.ZipFile, blob: str | None) -> NDArray[Any]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    name = blob if blob in members else next(iter(members)) if len(members) == 1 else None
    if name is None:
        listed = ", ".join(members) or "none"
        raise ImageError(
            f"{path}: holds the arrays {listed[:200]}; "
            + (f"none is named {blob}" if blob else "say which input blob is meant")
        )
    info = members[name]
    with archive.open(info) as member:
        header = _read_header(cast("BinaryIO", member))
        _check(f"{path}: {name}", header, info.file_size)
        if header.nbytes > MAX_ARCHIVE_BYTES:
            raise ImageError(
                f"{path}: {name} holds {header.nbytes} bytes; at most {MAX_ARCHIVE_BYTES} are held "
                "in memory (the limit): save it as .npy, which is read input by input"
            )
        data = member.read(header.nbytes)
    if len(data) < header.nbytes:
        raise ImageError(f"{path}: {name} is cut off")
    values = np.frombuffer(data, header.dtype)
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def _read_header(file: BinaryIO) -> ArrayHeader:
    """The header at the beginning of `file`; raises one of `_DAMAGED`."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not known")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    with warnings.catch_warnings():
        # Of headers that Python 2 wrote.
        warnings.simplefilter("ignore")
        shape, fortran, dtype = read(file)
    return ArrayHeader(tuple(int(size) for size in shape), dtype, bool(fortran), file.tell())


def _check(name: str, header: ArrayHeader, size: int) -> None:
    """Raise UnreadableImageError unless `size` bytes can hold the array of numbers."""
    check_dtype(name, header.dtype)
    if len(header.shape) > 4 or any(axis < 1 for axis in header.shape):
        raise UnreadableImageError(
            f"{name}: has the shape {str(header.shape)[:80]}; expected (N, C, H, W), (C, H, W), "
            "(N, K) or (K,), no size 0"
        )
    if header.offset + header.nbytes > size:
        raise UnreadableImageError(
            f"{name}: is cut off: its header declares {header.dtype} of shape "
            f"{str(header.shape)[:80]}, which takes {header.nbytes} bytes; "
            f"there are {max(0, size - header.offset)}"
        )


def _unreadable(path: Path, error: BaseException) -> UnreadableImageError:
    return UnreadableImageError(f"{path}: cannot be read as an array: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """The first line of an error's text, without the whole header that numpy quotes."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:120]
