"""A table comes in, the layout of the reference tool's first version goes out, and back.

One weight scale a layer, then one scale for each blob of the net (the input too), keyed by blob
name, all with every digit of a 64-bit float. The format holds no bottom scale of a layer: which
blob a layer reads stands in the network.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from int8calib.errors import TableError
from int8calib.table.findings import Finding, Scan, raise_first_error
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.table.rows import parse_rows
from int8calib.table.rules import WEIGHT_SUFFIX, lint_layers, name_problem, scale_problem
from int8calib.table.tool import weight_text

SUMMARY = "as the reference tool's first version writes it: one weight scale a layer, all blobs"


def write(table: CalibrationTable) -> str:
    """The text of `table`: all its layers and all its blob scales, in their order.

    Raises TableError when the blob scales are missing, when a layer has more than one weight
    scale, or when a name or scale breaks a rule.
    """
    if not table.blob_scales:
        raise TableError(
            "the table holds no blob scales, and the tool-v1 format needs one for every blob"
        )
    for layer in table.layers:
        if layer.weight_scales.size != 1:
            raise TableError(
                f"layer {layer.name}: {layer.weight_scales.size} weight scales, the tool-v1 format "
                "holds exactly 1 for each layer (per-tensor weight scales)"
            )
    raise_first_error(_lint(table), "tool-v1 table")
    rows = [f"{layer.name}{WEIGHT_SUFFIX} {weight_text(layer)}\n" for layer in table.layers]
    rows += [f"{name} {float(scale)!r}\n" for name, scale in table.blob_scales.items()]
    return "".join(rows)


def scan(text: str) -> Scan:
    """The layers (bottom scale NaN) and blob scales of `text`, and all its problems."""
    rows = parse_rows(text, dtype=np.float64, dead_value=0.0)
    layers = []
    for name, row in rows.weights.items():
        if row.scales.size != 1:
            message = f"{name}: {row.scales.size} weight scales, the tool-v1 format holds 1"
            rows.report("error", row.line, name, message)
            continue
        layers.append(LayerScales(name, row.scales, math.nan, dead_channels=row.dead))
    blobs = {name: row.scale for name, row in rows.blobs.items()}
    lines = {name: row.line for name, row in rows.weights.items()}
    table = CalibrationTable(tuple(layers), MappingProxyType(blobs))
    return Scan(table, tuple(rows.findings), lines)


def _lint(table: CalibrationTable) -> list[Finding]:
    # The bottom scale is not written: any valid one in its place lets the other rules speak.
    layers = tuple(replace(layer, bottom_scale=1.0) for layer in table.layers)
    findings = lint_layers(CalibrationTable(layers), zero_is_dead=True)
    for name, scale in table.blob_scales.items():
        problem = name_problem(name) or scale_problem(scale)
        if problem is not None:
            findings.append(Finding("error", None, None, f"blob {name}: {problem}"))
    return findings
