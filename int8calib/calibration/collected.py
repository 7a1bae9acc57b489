"""Statistics of a network with all that a table needs besides come in, one file goes out, and back.

With such a file thresholds are found again in a moment, by any method, without the network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.calibration.assemble import Blobs
from int8calib.calibration.layers import QuantLayer, WeightClips
from int8calib.calibration.scales import LEVELS, WINOGRAD_LEVELS
from int8calib.calibration.statistics.file import load_statistics, save_statistics
from int8calib.calibration.statistics.store import Statistics, merge_statistics
from int8calib.errors import StatisticsError

_FIELDS = ("name", "kind", "blob", "rows", "group", "reads_input", "first", "last")
_PAIRS = ("kernel", "stride", "dilation")
_WAYS = [(levels, whole) for levels in (LEVELS, WINOGRAD_LEVELS) for whole in (False, True)]


@dataclass(frozen=True, eq=False)
class Collected:
    """What a collection leaves: statistics, the layers they are for, and where all comes from.

    `fingerprint` (JSON values) holds what must agree where statistics are merged: the network, the
    preprocessing and the options that change activations.
    """

    statistics: Statistics
    layers: tuple[QuantLayer, ...]
    blobs: Blobs
    source: str
    fingerprint: Mapping[str, Any]


def save_collected(path: str | os.PathLike[str], collected: Collected) -> None:
    """Write `collected` to `path` (.npz), whole or not at all; raises `OutputError`."""
    layers = [
        {field: getattr(layer, field) for field in (*_FIELDS, *_PAIRS)}
        | {"count": layer.clips.count}
        for layer in collected.layers
    ]
    meta = {
        "fingerprint": dict(collected.fingerprint),
        "source": collected.source,
        "layers": layers,
        "blobs": list(collected.blobs.keys.items()),
        "inputs": sorted(collected.blobs.inputs),
    }
    arrays = {"absmax": np.concatenate([layer.clips.absmax for layer in collected.layers])}
    for levels, whole in _WAYS:
        arrays[_mse_name(levels, whole)] = _all_mse(collected.layers, levels, whole)
    save_statistics(path, replace(collected.statistics, meta=meta), arrays)


def load_collected(path: str | os.PathLike[str]) -> Collected:
    """The content of a file; raises `StatisticsError` where it holds something else."""
    stored = load_statistics(path)
    meta = stored.statistics.meta
    try:
        names = dict(meta["blobs"])
        return Collected(
            replace(stored.statistics, meta={}),
            tuple(_layers(meta["layers"], stored.arrays)),
            Blobs(names, frozenset(meta["inputs"])),
            str(meta["source"]),
            dict(meta["fingerprint"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        message = f"{Path(path)}: not written by `int8calib collect` or `merge` ({error})"
        raise StatisticsError(message) from error


def merge_collected(parts: Mapping[str, Collected]) -> Collected:
    """The files `parts`, by name, as one; `merge_statistics` tells what merges with what.

    Raises `StatisticsError` that names the two files and what differs in their fingerprint.
    """
    (first_name, first), *others = parts.items()
    for name, part in others:
        check_fingerprint(first.fingerprint, part.fingerprint, first_name, name)
    statistics = merge_statistics([part.statistics for part in parts.values()])
    return replace(first, statistics=statistics)


def check_fingerprint(a: Mapping[str, Any], b: Mapping[str, Any], name: str, other: str) -> None:
    """Raise `StatisticsError` for the first value in which two fingerprints differ."""
    for key in a.keys() | b.keys():
        if a.get(key) != b.get(key):
            raise StatisticsError(
                f"{name} and {other} do not belong together: their {key} differs "
                f"({_short(a.get(key))} and {_short(b.get(key))})"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _mse_name(levels: int, whole: bool) -> str:
    return f"mse/{levels}/{'layer' if whole else 'row'}"


def _all_mse(layers: Sequence[QuantLayer], levels: int, whole: bool) -> Array:
    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(lambda x: x.clips.mse(levels, whole), layers)))


def _layers(described: list[Any], arrays: Mapping[str, NDArray[Any]]) -> list[QuantLayer]:
    layers = []
    row = 0
    for index, stored in enumerate(described):
        fields = dict(stored) | {field: tuple(stored[field]) for field in _PAIRS}
        count, rows = int(fields.pop("count")), int(fields["rows"])
        absmax: Array = arrays["absmax"][row : row + rows]
        if len(absmax) != rows:
            raise ValueError(f"{len(absmax)} weight rows of {fields['name']}, {rows} announced")
        mse = _stored_mse(arrays, slice(row, row + rows), slice(index, index + 1))
        layers.append(QuantLayer(**fields, known_clips=WeightClips(absmax, count, mse)))
        row += rows
    return layers


def _stored_mse(
    arrays: Mapping[str, NDArray[Any]], rows: slice, layer: slice
) -> Callable[[int, bool], Array]:
    def mse(levels: int, whole: bool) -> Array:
        found: Array = arrays[_mse_name(levels, whole)][layer if whole else rows]
        return found

    return mse
