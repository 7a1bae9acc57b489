"""Compare two tables, row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from int8calib.table.model import CalibrationTable, LayerScales

Kind = Literal["layer", "weights", "bottom", "blob"]


@dataclass(frozen=True)
class DiffRow:
    """One scale, or one row of weight scales, in both tables.

    Attributes
    ----------
    layer : str
        The layer, or the blob.
    kind : str
        ``weights``, ``bottom``, ``blob``, or ``layer`` for a layer that only one table has.
    a, b : float or None
        The scales; of weights those of the channel that differs most, of a layer its bottom
        scale. None where a table has none.
    ratio : float or None
        `b` over `a`.
    channel : int or None
        The channel of weights that differs most.
    note : str
        Which table has the layer, or the counts of weight scales that differ.
    """

    layer: str
    kind: Kind
    a: float | None
    b: float | None
    ratio: float | None
    channel: int | None = None
    note: str = ""

    @property
    def distance(self) -> float:
        """How far the two are apart: |log ratio|, infinite where they cannot be compared."""
        if self.ratio is None or not self.ratio > 0:
            return math.inf
        return abs(math.log(self.ratio))


def diff_tables(a: CalibrationTable, b: CalibrationTable) -> list[DiffRow]:
    """Compare every layer's bottom and weight scales and every blob scale of two tables.

    Parameters
    ----------
    a, b : CalibrationTable
        The tables.

    Returns
    -------
    list of DiffRow
        The worst ratio first. What only one table has, and weight rows of different length, come
        before all ratios; equal rows come last, in the order of table `a`.
    """
    rows = _diff_layers(a, b)
    rows += _diff_blobs(a.blob_scales, b.blob_scales)
    rows += _diff_rows(a.weight_rows, b.weight_rows)
    return sorted(rows, key=lambda row: -row.distance)


def _diff_layers(a: CalibrationTable, b: CalibrationTable) -> list[DiffRow]:
    in_a = {layer.name: layer for layer in a.layers}
    in_b = {layer.name: layer for layer in b.layers}
    rows: list[DiffRow] = []
    for name in in_a | in_b:
        if name in in_a and name in in_b:
            rows += _diff_layer(in_a[name], in_b[name])
        elif name in in_a:
            rows.append(_one_sided(name, "layer", in_a[name].bottom_scale, None))
        else:
            rows.append(_one_sided(name, "layer", None, in_b[name].bottom_scale))
    return rows


def _diff_blobs(a: Mapping[str, float], b: Mapping[str, float]) -> list[DiffRow]:
    rows = []
    for name in {**a, **b}:
        if name in a and name in b:
            rows.append(DiffRow(name, "blob", a[name], b[name], _ratio(a[name], b[name])))
        else:
            rows.append(_one_sided(name, "blob", a.get(name), b.get(name)))
    return rows


def _diff_rows(
    a: Mapping[str, NDArray[np.floating[Any]]], b: Mapping[str, NDArray[np.floating[Any]]]
) -> list[DiffRow]:
    """Weight rows of layers without a bottom scale, by their keys."""
    return [
        _diff_weights(LayerScales(key, a[key], math.nan), LayerScales(key, b[key], math.nan))
        if key in a and key in b
        else _one_sided(key, "weights", None if key in b else math.nan, None)
        for key in {**a, **b}
    ]


def _one_sided(name: str, kind: Kind, a: float | None, b: float | None) -> DiffRow:
    # A tool-v1 layer has no bottom scale: NaN there, nothing to show here.
    shown_a, shown_b = (None if v is None or math.isnan(v) else v for v in (a, b))
    return DiffRow(name, kind, shown_a, shown_b, None, note=f"only in {'b' if a is None else 'a'}")


def _diff_layer(a: LayerScales, b: LayerScales) -> list[DiffRow]:
    rows = [_diff_weights(a, b)]
    known_a, known_b = not math.isnan(a.bottom_scale), not math.isnan(b.bottom_scale)
    if known_a and known_b:
        ratio = _ratio(a.bottom_scale, b.bottom_scale)
        rows.append(DiffRow(a.name, "bottom", a.bottom_scale, b.bottom_scale, ratio))
    elif known_a or known_b:
        left = a.bottom_scale if known_a else None
        rows.append(_one_sided(a.name, "bottom", left, b.bottom_scale if known_b else None))
    return rows


def _diff_weights(a: LayerScales, b: LayerScales) -> DiffRow:
    if a.weight_scales.size != b.weight_scales.size:
        note = f"{a.weight_scales.size} weight scales against {b.weight_scales.size}"
        return DiffRow(a.name, "weights", None, None, None, note=note)
    left = np.asarray(a.weight_scales, dtype=np.float64)
    right = np.asarray(b.weight_scales, dtype=np.float64)
    # A table made by hand may hold 0 or inf: they are the worst, not an error.
    with np.errstate(all="ignore"):
        distances = np.nan_to_num(np.abs(np.log(right / left)), nan=np.inf)
    worst = int(np.argmax(distances))
    scale_a, scale_b = float(left[worst]), float(right[worst])
    return DiffRow(a.name, "weights", scale_a, scale_b, _ratio(scale_a, scale_b), worst)


def _ratio(a: float, b: float) -> float | None:
    """`b` over `a`; None where one of them is no scale."""
    usable = all(math.isfinite(scale) and scale > 0 for scale in (a, b))
    return b / a if usable else None
