"""Statistics and what belongs to them come in, a versioned .npz file goes out, and back.

The same statistics give the same bytes. `meta` (JSON as UTF-8) holds the format, its version, the
blobs in order and the caller's own values; the arrays hold one row a blob.
"""

from __future__ import annotations

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
from numpy.typing import NDArray

from int8calib.calibration.statistics.histogram import BINS, Histogram, Range
from int8calib.calibration.statistics.store import Statistics
from int8calib.errors import StatisticsError
from int8calib.files import write_atomic

FORMAT = "int8calib-statistics"
SCHEMA = 1
_EXTRA = "extra/"
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
    *(RuntimeError, MemoryError),
)
"""What zipfile and numpy raise for a damaged archive, beside ValueError and its like."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class StatisticsFile:
    """The content of a file: statistics (their `meta` included) and the caller's arrays."""

    statistics: Statistics
    arrays: Arrays


def save_statistics(
    path: str | os.PathLike[str], statistics: Statistics, arrays: Arrays = MappingProxyType({})
) -> None:
    """Write `statistics` and `arrays` to `path`, whole or not at all; raises `OutputError`."""
    parts = {"all": statistics.histograms, "half": statistics.halves}
    head = {
        "format": FORMAT,
        "schema": SCHEMA,
        "blobs": list(statistics.ranges),
        "parts": [name for name, histograms in parts.items() if histograms],
        "meta": dict(statistics.meta),
    }
    text = json.dumps(head, sort_keys=True, default=dict).encode("utf-8")
    ranges = statistics.ranges.values()
    content: dict[str, NDArray[Any]] = {
        "meta": np.frombuffer(text, np.uint8),
        "ranges": np.array([(r.minimum, r.maximum) for r in ranges], np.float64).reshape(-1, 2),
        "range_images": np.array([r.images for r in ranges], np.int64),
        "seen": statistics.seen,
    }
    for name, histograms in parts.items():
        if histograms:
            content |= _histogram_arrays(name, [histograms[blob] for blob in statistics.ranges])
    content |= {_EXTRA + name: array for name, array in arrays.items()}
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


def load_statistics(path: str | os.PathLike[str]) -> StatisticsFile:
    """The content of `path`; raises `StatisticsError` where it is no such file, or damaged."""
    where = Path(path)
    try:
        with where.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        head = json.loads(arrays["meta"].tobytes())
        _check_head(head, where)
        return _parse(head, arrays)
    except OSError as error:
        raise StatisticsError(f"{where}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError) as error:
        message = f"{where}: no statistics of int8calib, or a damaged file ({error})"
        raise StatisticsError(message) from error
    except _DAMAGE as error:
        raise StatisticsError(f"{where}: a damaged file ({error})") from error


def _check_head(head: Any, where: Path) -> None:
    if head["format"] != FORMAT:
        raise ValueError(f"its format is {head['format']!r}")
    if head["schema"] != SCHEMA:
        raise StatisticsError(
            f"{where}: statistics of schema {head['schema']}, this version reads {SCHEMA}; "
            "collect them again"
        )


def _parse(head: Any, arrays: Mapping[str, NDArray[Any]]) -> StatisticsFile:
    blobs: list[str] = head["blobs"]
    ranges = {
        blob: Range(float(low), float(high), int(images))
        for blob, (low, high), images in zip(
            blobs, arrays["ranges"], arrays["range_images"], strict=True
        )
    }
    statistics = Statistics(
        ranges,
        _histograms("all", head, arrays),
        MappingProxyType(head["meta"]),
        _histograms("half", head, arrays),
        np.asarray(arrays["seen"], np.uint32),
    )
    extra = {
        name.removeprefix(_EXTRA): array
        for name, array in arrays.items()
        if name.startswith(_EXTRA)
    }
    return StatisticsFile(statistics, MappingProxyType(extra))


def _histograms(name: str, head: Any, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Histogram]:
    if name not in head["parts"]:
        return {}
    parts = [arrays[f"{name}/{part}"] for part in ("positive", "negative", "absmax")]
    counts = [arrays[f"{name}/{part}"] for part in ("zeros", "images")]
    return {
        blob: Histogram(positive, negative, float(absmax), int(zeros), int(images))
        for blob, positive, negative, absmax, zeros, images in zip(
            head["blobs"], *parts, *counts, strict=True
        )
    }
