"""The JSON format holds everything, bit for bit, and refuses what it did not write."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from int8calib.errors import TableError
from int8calib.table import FORMATS, CalibrationTable, LayerScales, detect_format, read_table
from tests.table_helpers import any_tables, bits, same_rows, tables

JSON = FORMATS["json"]


def flat(value: Any) -> Any:
    return bits(value) if isinstance(value, float) else value


def strip(table: CalibrationTable) -> Any:
    """Everything in a table as plain values, floats by their bits."""
    return (
        [
            (
                x.name,
                x.weight_scales.dtype,
                np.where(np.isnan(x.weight_scales), np.nan, x.weight_scales).tobytes(),
                bits(x.bottom_scale),
                x.evidence and [flat(v) for v in astuple(x.evidence)],
                x.dead_channels,
            )
            for x in table.layers
        ],
        [(name, bits(scale)) for name, scale in table.blob_scales.items()],
        json.dumps(dict(table.meta)),
    )


@given(made=any_tables())
def test_round_trip_of_everything(made: CalibrationTable) -> None:
    text = JSON.write(made)
    again = JSON.read(text, "t")
    assert strip(again) == strip(made)
    assert JSON.write(again) == text
    assert detect_format(text) is JSON


@given(made=tables())
def test_other_parsers_read_the_same_numbers(made: CalibrationTable) -> None:
    root = json.loads(JSON.write(made))
    for x, row in zip(made.layers, root["layers"], strict=True):
        assert np.array(row["weight_scales"], np.float32).tobytes() == x.weight_scales.tobytes()
        # Shortest: never more than the nine digits that any 32-bit float needs.
        assert all(float(f"{value:.9g}") == value for value in row["weight_scales"])


def test_shortest_digits_that_would_round_twice() -> None:
    # Read as 64 bits, the shortest digits of this float lie between two 32-bit ones (a known
    # case for parsers), and rounding again picks the wrong one.
    scale = np.array([0x15AE43FD], np.uint32).view(np.float32)
    assert np.float32(float(str(scale[0]))) != scale[0]
    made = CalibrationTable((LayerScales("c", scale, 0.5),))
    assert JSON.read(JSON.write(made), "t")["c"].weight_scales.tobytes() == scale.tobytes()


def test_readable_for_people() -> None:
    made = CalibrationTable((LayerScales("c", np.array([0.1, 3], np.float32), 0.5),), {"data": 2.0})
    row = (
        '{"name": "c", "dtype": "float32", "weight_scales": [0.1, 3.0], "dead_channels": [], '
        '"bottom_scale": 0.5, "evidence": null}'
    )
    assert JSON.write(made) == (
        '{\n "format": "int8calib-table",\n "schema": 1,\n "layers": [\n  ' + row + "\n ],\n"
        ' "blob_scales": {"data": 2.0},\n "meta": {}\n}\n'
    )


def test_a_golden_table_survives_the_detour(shared: Path) -> None:
    path = shared / "golden" / "ncnn_bons_imagenet_mod11l" / "kl.table"
    made = read_table(path)
    again = JSON.read(JSON.write(made), "t")
    assert same_rows(made, again)
    assert [x.dead_channels for x in made.layers] == [x.dead_channels for x in again.layers]


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_meta_that_json_cannot_hold(meta: dict[str, Any]) -> None:
    with pytest.raises(TableError, match="meta cannot be written"):
        JSON.write(CalibrationTable((), meta=meta))


def test_scales_that_json_cannot_hold() -> None:
    with pytest.raises(TableError, match="layer c: weight scales of type int64"):
        JSON.write(CalibrationTable((LayerScales("c", np.array([1, 2]), 1.0),)))
    twice = LayerScales("c", np.ones(1, np.float32), 1.0)
    with pytest.raises(TableError, match="layer c: stands more than once"):
        JSON.write(CalibrationTable((twice, twice)))


ROW = {
    "name": "c",
    "dtype": "float32",
    "weight_scales": [1.0],
    "dead_channels": [],
    "bottom_scale": 1.0,
    "evidence": None,
}


def text_of(layer: dict[str, Any] | None = None, **changes: Any) -> str:
    layers = [ROW if layer is None else {**ROW, **layer}]
    root: dict[str, Any] = {"format": "int8calib-table", "schema": 1, "layers": layers}
    return json.dumps({**root, "blob_scales": {}, "meta": {}, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n\n]", "^t:3: no JSON"),
        ("[]", "no int8calib table"),
        ('{"format": "other"}', "no int8calib table"),
        (text_of(schema=2), "schema 2, this version reads schema 1"),
        (text_of(layers={}), "table.layers: dict found, list is right"),
        (text_of(layers=[[]]), r"layers\[0\]: 'name' is missing"),
        (text_of(layers=[ROW, ROW]), "layer c: stands more than once"),
        (text_of(blob_scales={"a": "x"}), r"blob_scales\['a'\]: 'x' is no number"),
        (text_of(blob_scales={"a": True}), "True is no number"),
        (text_of(blob_scales={"a": 10**400}), "too large"),
        (text_of({"name": 3}), r"layers\[0\].name: int found, str is right"),
        (text_of({"dtype": "float16"}), "float32 or float64 is right"),
        (text_of({"weight_scales": [None]}), r"weight_scales\[0\]: None is no number"),
        (text_of({"weight_scales": [1e39]}), "does not fit float32"),
        (text_of({"dead_channels": [1]}), "indices below 1"),
        (text_of({"dead_channels": [True]}), "indices below 1"),
        (text_of({"evidence": {}}), r"layers\[0\].evidence: 'blob' is missing"),
        (text_of({"evidence": 5}), "evidence: int found"),
        (text_of(meta=[]), "meta: list found, dict is right"),
        (text_of({"bottom_scale": 1.5}).replace("1.5", "NaN"), "NaN is no JSON number"),
        (text_of().replace('"meta"', '"schema"'), "'schema' stands twice"),
        (text_of({"bottom_scale": 1}).replace(": 1,", f": {'1' * 5000},"), "t: "),
        ('{"format":' + "[" * 200_000, "t: "),
    ],
)
def test_strict_reading(text: str, message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        JSON.read(text, "t")
    assert str(caught.value).startswith("t:")
