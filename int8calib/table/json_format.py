"""The json format: every field of a table, which reads back bit for bit.

One object with `format`, `schema` (the version of this layout), `layers` (one a line),
`blob_scales` and `meta`. 32-bit scales are written with the fewest digits that read back to the
same float, 64-bit ones with all of theirs; a float that JSON has no number for is the text
"nan", "inf" or "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.errors import TableError
from int8calib.parsing import parse_json
from int8calib.table.model import BottomEvidence, CalibrationTable, LayerScales
from int8calib.table.rules import Finding, Scan, duplicates, row_problem

SUMMARY = "complete, for tools: every field, reads back bit for bit"
FORMAT = "int8calib-table"
SCHEMA = 1
_DTYPES: dict[str, type[np.float32] | type[np.float64]] = {
    "float32": np.float32,
    "float64": np.float64,
}
_NOT_FINITE = {"nan", "inf", "-inf"}


def write(table: CalibrationTable) -> str:
    """The text of `table`; raises TableError when `meta` holds something that JSON cannot."""
    twice = duplicates([layer.name for layer in table.layers])
    if twice:
        raise TableError(f"layer {twice[0]}: stands more than once")
    try:
        layers = ",\n".join(f"  {_dump(_layer_object(layer))}" for layer in table.layers)
        blobs = _dump({name: _number(scale) for name, scale in table.blob_scales.items()})
        meta = _dump(table.meta)
        rows = {key: _shortest(np.asarray(row)) for key, row in table.weight_rows.items()}
        more = f' "weight_rows": {_dump(rows)},\n' if rows else ""
    except (TypeError, ValueError) as error:
        raise TableError(f"the table's meta cannot be written as JSON: {error}") from error
    return (
        f'{{\n "format": "{FORMAT}",\n "schema": {SCHEMA},\n "layers": [\n{layers}\n ],\n'
        f' "blob_scales": {blobs},\n{more} "meta": {meta}\n}}\n'
    )


def scan(text: str) -> Scan:
    """The table of `text`, or an empty one and the first thing that is wrong."""
    try:
        root = parse_json(text)
        return Scan(_table(root))
    except json.JSONDecodeError as error:
        finding = Finding("error", error.lineno, None, f"no JSON: {error.msg}")
    except (TableError, ValueError) as error:
        finding = Finding("error", None, None, str(error))
    return Scan(CalibrationTable(()), (finding,))


def _dump(value: object) -> str:
    return json.dumps(value, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


def _number(value: float) -> float | str:
    # float(): numpy scalars would be written by their own repr.
    return float(value) if math.isfinite(value) else repr(float(value))


def _shortest(scales: NDArray[np.floating[Any]]) -> list[float | str]:
    """Each scale as the 64-bit float with the fewest digits that still rounds to it."""
    short = [float(str(scale)) for scale in scales]
    exact = scales.tolist()
    return [
        _number(near if scales.dtype.type(near) == value else value)
        for near, value in zip(short, exact, strict=True)
    ]


def _layer_object(layer: LayerScales) -> dict[str, object]:
    scales = np.asarray(layer.weight_scales)
    if scales.dtype.name not in _DTYPES or scales.ndim != 1:
        raise TableError(
            f"layer {layer.name}: weight scales of type {scales.dtype} and shape {scales.shape}, "
            "one row of float32 or float64 is right"
        )
    evidence = layer.evidence
    return {
        "name": layer.name,
        "dtype": scales.dtype.name,
        "weight_scales": _shortest(scales),
        "dead_channels": [int(channel) for channel in layer.dead_channels],
        "bottom_scale": _number(layer.bottom_scale),
        "evidence": None
        if evidence is None
        else {
            "blob": evidence.blob,
            "method": evidence.method,
            "absmax": _number(evidence.absmax),
            "threshold": _number(evidence.threshold),
            "bin": None if evidence.bin is None else int(evidence.bin),
            "clipped": _number(evidence.clipped),
            "spread": None if evidence.spread is None else _number(evidence.spread),
        },
    }


def _table(root: object) -> CalibrationTable:
    if not isinstance(root, dict) or root.get("format") != FORMAT:
        raise TableError(f'no int8calib table: "format": "{FORMAT}" is missing')
    if root.get("schema") != SCHEMA:
        raise TableError(f"schema {root.get('schema')!r}, this version reads schema {SCHEMA}")
    layers = [
        _layer(value, f"layers[{index}]")
        for index, value in enumerate(_get(root, "layers", list, "table"))
    ]
    twice = duplicates([layer.name for layer in layers])
    if twice:
        raise TableError(f"layer {twice[0]}: stands more than once")
    blobs = _get(root, "blob_scales", dict, "table")
    return CalibrationTable(
        tuple(layers),
        MappingProxyType({name: _float(blobs, name, "blob_scales") for name in blobs}),
        MappingProxyType(_get(root, "meta", dict, "table")),
        MappingProxyType(_weight_rows(root.get("weight_rows", {}))),
    )


def _weight_rows(value: object) -> dict[str, NDArray[np.floating[Any]]]:
    if not isinstance(value, dict):
        raise TableError("weight_rows: rows by their keys are right")
    rows: dict[str, NDArray[np.floating[Any]]] = {}
    for key in value:
        scales = _get(value, key, list, "weight_rows")
        where = f"weight_rows[{key!r}]"
        rows[key] = np.array([_float(scales, i, where) for i in range(len(scales))], np.float32)
        problem = row_problem(key, rows[key])
        if problem is not None:
            raise TableError(f"{where}: {problem}")
    return rows


def _layer(value: object, where: str) -> LayerScales:
    name: str = _get(value, "name", str, where)
    dtype = _DTYPES.get(_get(value, "dtype", str, where))
    if dtype is None:
        raise TableError(f"{where}.dtype: float32 or float64 is right")
    scales = _get(value, "weight_scales", list, where)
    numbers = [_float(scales, index, f"{where}.weight_scales") for index in range(len(scales))]
    with np.errstate(over="ignore"):
        array: NDArray[np.floating[Any]] = np.array(numbers).astype(dtype)
    if not np.array_equal(np.isfinite(array), np.isfinite(numbers)):
        raise TableError(f"{where}.weight_scales: a number does not fit {dtype.__name__}")
    dead = _get(value, "dead_channels", list, where)
    if not all(type(channel) is int and 0 <= channel < len(scales) for channel in dead):
        raise TableError(f"{where}.dead_channels: indices below {len(scales)} are right")
    evidence = _get(value, "evidence", dict | None, where)
    return LayerScales(
        name,
        array,
        _float(value, "bottom_scale", where),
        None if evidence is None else _evidence(evidence, f"{where}.evidence"),
        tuple(dead),
    )


def _evidence(value: dict[str, Any], where: str) -> BottomEvidence:
    return BottomEvidence(
        blob=_get(value, "blob", str, where),
        method=_get(value, "method", str, where),
        absmax=_float(value, "absmax", where),
        threshold=_float(value, "threshold", where),
        bin=_get(value, "bin", int | None, where),
        clipped=_float(value, "clipped", where),
        spread=None if value.get("spread") is None else _float(value, "spread", where),
    )


def _get(holder: Any, key: str, kind: Any, where: str) -> Any:
    if not isinstance(holder, dict) or key not in holder:
        raise TableError(f"{where}: {key!r} is missing")
    value = holder[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        right = getattr(kind, "__name__", kind)
        raise TableError(f"{where}.{key}: {type(value).__name__} found, {right} is right")
    return value


def _float(holder: Any, key: Any, where: str) -> float:
    if isinstance(holder, dict) and key not in holder:
        raise TableError(f"{where}: {key!r} is missing")
    value = holder[key]
    if isinstance(value, str) and value in _NOT_FINITE:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TableError(f"{where}[{key!r}]: {value!r} is no number")
    try:
        return float(value)
    except OverflowError:
        raise TableError(f"{where}[{key!r}]: the number is too large") from None
