"""Files of collected statistics with all that a table needs besides: thresholds without a network.

With such a file thresholds are found again in a moment, by any method.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.calibration.assemble import Blobs
from int8calib.calibration.layers import QuantLayer, WeightClips
from int8calib.calibration.statistics.file import check_array, load_statistics, save_statistics
from int8calib.calibration.statistics.store import Statistics, merge_statistics
from int8calib.errors import ModelError, StatisticsError
from int8calib.levels import LEVELS, WINOGRAD_LEVELS

_FIELDS: Mapping[str, type] = {
    "name": str,
    "kind": str,
    "blob": str,
    "outputs": int,
    "rows": int,
    "group": int,
    "kernel": list,
    "stride": list,
    "dilation": list,
    "reads_input": bool,
    "first": bool,
    "last": bool,
    "count": int,
}
"""What a file says of a layer, with the type of each; `count` is that of its clips."""
_PAIRS = ("kernel", "stride", "dilation")
_WAYS = [(levels, whole) for levels in (LEVELS, WINOGRAD_LEVELS) for whole in (False, True)]


@dataclass(frozen=True, eq=False)
class Collected:
    """What a collection leaves: statistics, the layers they are for, and where all comes from.

    Attributes
    ----------
    statistics : Statistics
    layers : tuple of QuantLayer
        All layers that can be INT8, without their weights.
    blobs : Blobs
        Every blob of the network.
    source : str
        What messages call the network.
    fingerprint : mapping
        What must agree where statistics are merged, JSON values: the network, the preprocessing
        and the options that change activations.
    weight_rows : mapping of str to float32 (rows,)
        Weight scales that a table holds besides.
    """

    statistics: Statistics
    layers: tuple[QuantLayer, ...]
    blobs: Blobs
    source: str
    fingerprint: Mapping[str, Any]
    weight_rows: Mapping[str, Array] = field(default_factory=dict)


def save_collected(path: str | os.PathLike[str], collected: Collected) -> None:
    """Write `collected` to `path` (.npz), whole or not at all; raises `OutputError`."""
    layers = [
        {name: getattr(layer, name) for name in _FIELDS if name != "count"}
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
    if collected.weight_rows:
        meta["weight_rows"] = {key: row.tolist() for key, row in collected.weight_rows.items()}
    arrays = {"absmax": np.concatenate([layer.clips.absmax for layer in collected.layers])}
    arrays["limits"] = np.concatenate([layer.clips.limits for layer in collected.layers])
    for levels, whole in _WAYS:
        arrays[_mse_name(levels, whole)] = _all_mse(collected.layers, levels, whole)
    save_statistics(path, replace(collected.statistics, meta=meta), arrays)


def load_collected(path: str | os.PathLike[str]) -> Collected:
    """Return the content of a file; raises `StatisticsError` where it holds something else."""
    stored = load_statistics(path)
    meta = stored.statistics.meta
    try:
        needed = {"fingerprint", "source", "layers", "blobs", "inputs"}
        if meta.keys() - {"weight_rows"} != needed:
            raise ValueError(f"it holds {', '.join(meta) or 'statistics alone'}")
        layers = _layers(meta["layers"], stored.arrays)
        missing = [layer.blob for layer in layers if layer.blob not in stored.statistics.ranges]
        if missing:
            raise ValueError(f"its statistics lack the blob {missing[0]!r}")
        return Collected(
            replace(stored.statistics, meta={}),
            layers,
            _blobs(meta["blobs"], meta["inputs"]),
            str(meta["source"]),
            dict(meta["fingerprint"]),
            _weight_rows(meta.get("weight_rows", {})),
        )
    except (KeyError, TypeError, ValueError, IndexError, ModelError) as error:
        message = f"{Path(path)}: not written by `int8calib collect` or `merge` ({error})"
        raise StatisticsError(message) from error


def merge_collected(parts: Mapping[str, Collected]) -> Collected:
    """Return several files as one; `merge_statistics` tells what merges with what.

    Parameters
    ----------
    parts : mapping of str to Collected
        The files by name.

    Raises
    ------
    StatisticsError
        Names two files that do not belong together, and what differs in their fingerprints.
    """
    (first_name, first), *others = parts.items()
    for name, part in others:
        check_fingerprint(first.fingerprint, part.fingerprint, first_name, name)
    statistics = merge_statistics([part.statistics for part in parts.values()])
    return replace(first, statistics=statistics)


def check_fingerprint(a: Mapping[str, Any], b: Mapping[str, Any], name: str, other: str) -> None:
    """Raise `StatisticsError` for the first value in which two fingerprints differ."""
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            what, first, second = _difference(key, a.get(key), b.get(key))
            raise StatisticsError(
                f"{name} and {other} do not belong together: their {what} differs "
                f"({_short(first)} and {_short(second)})"
            )


def _difference(what: str, first: Any, second: Any) -> tuple[str, Any, Any]:
    """The innermost value in which two differ, with the keys on the way to it."""
    while isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = sorted(first.keys() | second.keys())
        key = next(key for key in keys if first.get(key) != second.get(key))
        what, first, second = f"{what}, {key}", first.get(key), second.get(key)
    return what, first, second


def _weight_rows(stored: Any) -> dict[str, Array]:
    rows = {key: np.array(row, np.float32) for key, row in dict(stored).items()}
    for key, row in rows.items():
        if row.ndim != 1 or not row.size or not ((row > 0) & np.isfinite(row)).all():
            raise ValueError(f"the weight row {_short(key)} holds no scales")
    return rows


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _mse_name(levels: int, whole: bool) -> str:
    return f"mse/{levels}/{'layer' if whole else 'row'}"


def _all_mse(layers: Sequence[QuantLayer], levels: int, whole: bool) -> Array:
    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(lambda x: x.clips.mse(levels, whole), layers)))


def _blobs(pairs: Any, inputs: Any) -> Blobs:
    names = dict(pairs)
    if len(names) < len(pairs) or not all(map(_is_text, (*names, *names.values(), *inputs))):
        raise ValueError("its list of blobs holds something twice, or what is no name")
    return Blobs(names, frozenset(inputs))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _layers(described: Any, arrays: Mapping[str, NDArray[Any]]) -> tuple[QuantLayer, ...]:
    """The layers of a file, which has one row of clips for each of their rows."""
    if not isinstance(described, list) or not described:
        raise ValueError("it lists no layers")
    for stored in described:
        _check_fields(stored)
    names = [stored["name"] for stored in described]
    if len(set(names)) < len(names):
        raise ValueError("it lists a layer twice")
    rows = sum(stored["rows"] for stored in described)
    absmax = check_array("absmax", arrays["absmax"], np.float32, (rows,))
    _check_clips("absmax", absmax, math.inf)
    limits = check_array("limits", arrays["limits"], np.float32, (rows,))
    if not (limits > 0).all():
        raise ValueError("limits holds values that no scales have")
    for levels, whole in _WAYS:
        name = _mse_name(levels, whole)
        count = len(described) if whole else rows
        check_array(name, arrays[name], np.float32, (count,))
        _check_clips(name, arrays[name], math.inf if whole else absmax)
    if len(arrays) != 2 + len(_WAYS):
        raise ValueError("it holds arrays that belong to no layer")
    layers = []
    row = 0
    for index, stored in enumerate(described):
        part = slice(row, row + stored["rows"])
        clips = WeightClips(
            absmax[part],
            stored["count"],
            _stored_mse(arrays, part, slice(index, index + 1)),
            limits[part],
        )
        fields = dict(stored) | {name: tuple(stored[name]) for name in _PAIRS}
        del fields["count"]
        layers.append(QuantLayer(**fields, known_clips=clips))
        row = part.stop
    return tuple(layers)


def _check_fields(stored: Any) -> None:
    """Refuse what does not describe a layer."""
    if not isinstance(stored, dict) or stored.keys() != _FIELDS.keys():
        raise ValueError(f"a layer is {_short(stored)}")
    for key, value in stored.items():
        if type(value) is not _FIELDS[key]:
            raise ValueError(f"{key} of layer {stored['name']!r} is {_short(value)}")
        numbers = value if isinstance(value, list) else [value] if type(value) is int else [1, 1]
        if any(type(n) is not int or n < 1 for n in numbers) or (
            key in _PAIRS and len(numbers) != 2
        ):
            raise ValueError(f"{key} of layer {stored['name']!r} is {_short(value)}")


def _check_clips(name: str, clips: NDArray[Any], limit: Any) -> None:
    if not ((clips >= 0) & (clips <= limit) & np.isfinite(clips)).all():
        raise ValueError(f"{name} holds values that no weights have")


def _stored_mse(
    arrays: Mapping[str, NDArray[Any]], rows: slice, layer: slice
) -> Callable[[int, bool], Array]:
    def mse(levels: int, whole: bool) -> Array:
        clips: Array = arrays[_mse_name(levels, whole)][layer if whole else rows]
        return clips

    return mse
