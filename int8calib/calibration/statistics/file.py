"""Statistics files: versioned .npz archives, checked before anything in them is used.

The same statistics give the same bytes. `meta` (JSON as UTF-8) holds the format, its version, the
blobs in order and the caller's own values; `digest` is the SHA-256 of all of it. Histograms of two
passes are arrays with one row a blob. Those of one pass, whose bins are many and mostly empty
towards the end, stand one after the other, each up to its last filled bin. A file is read only
after its sizes are known to be within limits, and believed only after its parts fit each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from int8calib.calibration.statistics.fine import FINE_BINS, NONE, FineHistogram
from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.calibration.statistics.ranges import Range
from int8calib.calibration.statistics.store import Statistics
from int8calib.errors import StatisticsError
from int8calib.files import open_regular, write_atomic
from int8calib.limits import MAX_STATISTICS_BYTES, value_count
from int8calib.parsing import parse_json

FORMAT = "int8calib-statistics"
SCHEMA = 3
"""Version 2 had histograms of two passes alone, and did not say so."""
EXACT, ONE_PASS = "exact", "one pass"
_EXTRA = "extra/"
_HEAD = {"format", "schema", "blobs", "parts", "meta", "kind"}
_PARTS = ("all", "half")
_DAMAGE = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, EOFError),
    *(SyntaxError, RecursionError, RuntimeError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
"""What zipfile, json and numpy raise for a damaged archive."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class StatisticsFile:
    """The content of a file: statistics (their `meta` included) and the caller's arrays."""

    statistics: Statistics
    arrays: Arrays


def save_statistics(
    path: str | os.PathLike[str], statistics: Statistics, arrays: Arrays = MappingProxyType({})
) -> None:
    """Write `statistics` and the caller's `arrays` to `path`, whole or not at all.

    Raises
    ------
    OutputError
        Where the file cannot be written.
    """
    parts = dict(zip(_PARTS, (statistics.histograms, statistics.halves), strict=True))
    head = {
        "format": FORMAT,
        "schema": SCHEMA,
        "blobs": list(statistics.ranges),
        "parts": [name for name, histograms in parts.items() if histograms],
        "meta": dict(statistics.meta),
        "kind": ONE_PASS if statistics.one_pass else EXACT,
    }
    text = json.dumps(head, sort_keys=True, default=dict).encode("utf-8")
    ranges = statistics.ranges.values()
    content: dict[str, NDArray[Any]] = {
        "meta": np.frombuffer(text, np.uint8),
        "ranges": np.array([(r.minimum, r.maximum) for r in ranges], np.float64).reshape(-1, 2),
        "range_images": np.array([r.images for r in ranges], np.int64),
        "checksums": statistics.checksums,
    }
    for name, histograms in parts.items():
        if histograms:
            ordered = [histograms[blob] for blob in statistics.ranges]
            pack = _fine_arrays if statistics.one_pass else _histogram_arrays
            content |= pack(name, ordered)
    content |= {_EXTRA + name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content["digest"] = _digest(content)
    buffer = BytesIO()
    write: Callable[..., None] = np.savez_compressed
    write(buffer, **content)
    write_atomic(path, buffer.getvalue())


def _histogram_arrays(name: str, histograms: list[Histogram]) -> dict[str, NDArray[Any]]:
    return {
        f"{name}/positive": np.array([h.positive for h in histograms]).reshape(-1, BINS),
        f"{name}/negative": np.array([h.negative for h in histograms]).reshape(-1, BINS),
        f"{name}/absmax": np.array([h.absmax for h in histograms], np.float64),
        f"{name}/zeros": np.array([h.zeros for h in histograms], np.int64),
        f"{name}/images": np.array([h.images for h in histograms], np.int64),
    }


def _fine_arrays(name: str, histograms: list[Histogram]) -> dict[str, NDArray[Any]]:
    fine = [h.fine for h in histograms if h.fine is not None]
    arrays: dict[str, NDArray[Any]] = {
        f"{name}/exponents": np.array([h.exponent for h in fine], np.int64),
        f"{name}/zeros": np.array([h.zeros for h in fine], np.int64),
        f"{name}/images": np.array([h.images for h in fine], np.int64),
    }
    for side, counts in (
        ("positive", [h.positive for h in fine]),
        ("negative", [h.negative for h in fine]),
    ):
        filled: list[NDArray[Any]] = [_up_to_last(c) for c in counts]
        joined = np.concatenate([np.empty(0, np.uint32), *filled])
        arrays[f"{name}/{side}"] = joined.astype(np.min_scalar_type(joined.max(initial=0)))
        arrays[f"{name}/{side}_bins"] = np.array([c.size for c in filled], np.int64)
    return arrays


def _up_to_last(counts: NDArray[Any]) -> NDArray[Any]:
    """The counts up to the last filled bin."""
    filled = counts != 0
    return counts[: counts.size - int(filled[::-1].argmax())] if filled.any() else counts[:0]


def _digest(content: Arrays) -> NDArray[np.uint8]:
    """The SHA-256 of all arrays, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(content):
        array = content[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), np.uint8)


def load_statistics(path: str | os.PathLike[str]) -> StatisticsFile:
    """Return the content of `path`.

    Raises
    ------
    StatisticsError
        Where it is no such file, of another version, or damaged: sizes beyond the limits, parts
        that are missing, of another type or shape, or that do not fit each other.
    """
    where = Path(path)
    try:
        with open_regular(where) as file, zipfile.ZipFile(file) as archive:
            arrays = _read_arrays(archive)
        head = parse_json(arrays["meta"].tobytes())
        _check_head(head, where)
        try:
            content = _parse(head, arrays)
        except StatisticsError as error:
            raise ValueError(str(error)) from error
        if not np.array_equal(arrays.pop("digest"), _digest(arrays)):
            raise ValueError("its content was changed after it was written")
        return content
    except OSError as error:
        raise StatisticsError(f"{where}: cannot be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        message = f"{where}: no statistics of int8calib, or a damaged file ({_line(error)})"
        raise StatisticsError(message) from error


def _line(error: BaseException) -> str:
    """What an error says, in one line of moderate length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _read_arrays(archive: zipfile.ZipFile) -> dict[str, NDArray[Any]]:
    """All arrays of an archive; the sizes it announces are looked at first."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("a part is there twice")
    if sum(member.file_size for member in members) > MAX_STATISTICS_BYTES:
        raise ValueError(f"unpacks to more than {MAX_STATISTICS_BYTES} bytes (the limit)")
    return {
        member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members
    }


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, whose type and shape are those of its size."""
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{member.filename} is no .npy array of version 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        size = value_count(shape) * dtype.itemsize
        if dtype.kind not in "iuf" or fortran or any(n < 0 for n in shape):
            raise ValueError(f"{member.filename} is of type {dtype}")
        data = stream.read(MAX_STATISTICS_BYTES)
        if len(data) != size:
            raise ValueError(f"{member.filename} has {len(data)} bytes; its shape {shape}: {size}")
        return np.frombuffer(data, dtype).reshape(shape)


def _check_head(head: Any, where: Path) -> None:
    """Refuse another format or version, and a head that lacks something."""
    if head["format"] != FORMAT:
        raise ValueError(f"its format is {head['format']!r}")
    if head["schema"] == 2:
        head.setdefault("kind", EXACT)
    elif head["schema"] != SCHEMA:
        raise StatisticsError(
            f"{where}: statistics of schema {head['schema']}, this version reads 2 and "
            f"{SCHEMA}; "
            "collect them again"
        )
    blobs = head["blobs"]
    if head["kind"] not in (EXACT, ONE_PASS):
        raise ValueError(f"its histograms are of the kind {head['kind']!r}")
    if head.keys() != _HEAD or not isinstance(head["meta"], dict):
        raise ValueError(f"its head has the fields {', '.join(head)}")
    if (
        not isinstance(blobs, list)
        or not all(isinstance(blob, str) for blob in blobs)
        or len(set(blobs)) < len(blobs)
    ):
        raise ValueError("its list of blobs holds something twice, or what is no name")
    if head["parts"] not in ([], ["all"], list(_PARTS)):
        raise ValueError(f"it has the parts {head['parts']}")


def check_array(
    name: str, array: NDArray[Any], dtype: DTypeLike, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return `array`; ValueError, which names it, where it has another type or shape."""
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{name} is of type {array.dtype} and shape {array.shape}; expected "
            f"{np.dtype(dtype)} and {shape}"
        )
    return array


def _parse(head: Any, arrays: Arrays) -> StatisticsFile:
    """The content, checked; ValueError and its like for what cannot be."""
    blobs: list[str] = head["blobs"]
    known = {"meta", "digest", "ranges", "range_images", "checksums"}
    limits = check_array("ranges", arrays["ranges"], np.float64, (len(blobs), 2))
    images = check_array("range_images", arrays["range_images"], np.int64, (len(blobs),))
    checksums = arrays["checksums"]
    check_array("checksums", checksums, np.uint32, (checksums.size,))
    check_array("digest", arrays["digest"], np.uint8, (hashlib.sha256().digest_size,))
    ranges = {
        blob: Range(float(limits[i, 0]), float(limits[i, 1]), int(images[i]))
        for i, blob in enumerate(blobs)
    }
    histograms: dict[str, dict[str, Histogram]] = {part: {} for part in _PARTS}
    for part in head["parts"]:
        if head["kind"] == ONE_PASS:
            histograms[part] = _fine_histograms(part, ranges, arrays)
            known |= {f"{part}/{name}" for name in _FINE_COLUMNS}
        else:
            histograms[part] = _histograms(part, blobs, arrays)
            known |= {f"{part}/{name}" for name in _COLUMNS}
    extra = {
        name.removeprefix(_EXTRA): array
        for name, array in arrays.items()
        if name.startswith(_EXTRA)
    }
    unknown = [name for name in arrays if name not in known and not name.startswith(_EXTRA)]
    if unknown:
        raise ValueError(f"it has an unknown part {unknown[0]}")
    statistics = Statistics(
        ranges, histograms["all"], MappingProxyType(head["meta"]), histograms["half"], checksums
    )
    statistics.check()
    return StatisticsFile(statistics, MappingProxyType(extra))


_COLUMNS: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {
    "positive": (np.int64, (BINS,)),
    "negative": (np.int64, (BINS,)),
    "absmax": (np.float64, ()),
    "zeros": (np.int64, ()),
    "images": (np.int64, ()),
}
"""The arrays of a part, with the type and shape of what each has for a blob."""


def _histograms(part: str, blobs: list[str], arrays: Arrays) -> dict[str, Histogram]:
    columns = {
        name: check_array(f"{part}/{name}", arrays[f"{part}/{name}"], dtype, (len(blobs), *shape))
        for name, (dtype, shape) in _COLUMNS.items()
    }
    return {
        blob: Histogram(
            columns["positive"][i],
            columns["negative"][i],
            float(columns["absmax"][i]),
            int(columns["zeros"][i]),
            int(columns["images"][i]),
        )
        for i, blob in enumerate(blobs)
    }


_FINE_COLUMNS = (
    *("positive", "positive_bins", "negative", "negative_bins"),
    *("exponents", "zeros", "images"),
)


def _fine_histograms(
    part: str, ranges: Mapping[str, Range], arrays: Arrays
) -> dict[str, Histogram]:
    exponents, zeros, images = (
        check_array(name, arrays[name], np.int64, (len(ranges),)).tolist()
        for name in (f"{part}/exponents", f"{part}/zeros", f"{part}/images")
    )
    sides = [
        _fine_counts(f"{part}/{side}", len(ranges), arrays) for side in ("positive", "negative")
    ]
    made = {}
    for i, (blob, limits) in enumerate(ranges.items()):
        fine = FineHistogram(sides[0][i], sides[1][i], exponents[i], zeros[i], images[i])
        made[blob] = Histogram.from_fine(fine, limits.absmax)
    return made


def _fine_counts(name: str, blobs: int, arrays: Arrays) -> list[NDArray[Any]]:
    """The counts of each blob, of which a file holds those up to its last filled bin."""
    sizes = check_array(f"{name}_bins", arrays[f"{name}_bins"], np.int64, (blobs,))
    joined = arrays[name]
    if sizes.min(initial=0) < 0 or sizes.max(initial=0) > FINE_BINS:
        raise ValueError(f"{name}_bins holds numbers out of range")
    if joined.dtype.kind != "u" or joined.shape != (int(sizes.sum()),):
        raise ValueError(f"{name} is of type {joined.dtype} and shape {joined.shape}")
    dtype = np.uint64 if joined.dtype == np.uint64 else np.uint32
    counts = []
    for end, size in zip(np.cumsum(sizes).tolist(), sizes.tolist(), strict=True):
        side = np.zeros(FINE_BINS, dtype) if size else NONE.astype(dtype, copy=False)
        if size:
            side[:size] = joined[end - size : end]
        counts.append(side)
    return counts
