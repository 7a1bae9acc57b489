"""The formats of the reference tool (caffe-int8-convert-tool), its latest and its first version.

The latest ("weight") version writes the rows of the ncnn format with every digit of a 64-bit
float, and 0 (as `0.0`) for a channel whose weights are all below 1e-4. The first version, tool-v1,
has one weight scale a layer, then one scale for each blob of the net (the input too), keyed by blob
name. It holds no bottom scale of a layer: which blob a layer reads stands in the network.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from int8calib.errors import TableError
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.table.rows import pair_layers, parse_rows
from int8calib.table.rules import (
    WEIGHT_SUFFIX,
    Finding,
    Scan,
    lint_layers,
    name_problem,
    raise_first_error,
    refuse_weight_rows,
    scale_problem,
)

SUMMARY = "as the reference tool's latest version writes it: all digits, 0 for dead channels"
SUMMARY_V1 = "as the reference tool's first version writes it: one weight scale a layer, all blobs"


def write(table: CalibrationTable) -> str:
    """The text of `table`; raises TableError naming the layer that breaks a rule.

    A weight scale of 0 is written like a dead channel.
    """
    if not table.layers:
        raise TableError(
            "the table holds no layers, and the tool format needs weight and bottom scales of each"
        )
    refuse_weight_rows(table, "tool")
    raise_first_error(lint_layers(table, zero_is_dead=True), "tool table")
    rows = [f"{layer.name}{WEIGHT_SUFFIX} {_weight_text(layer)}\n" for layer in table.layers]
    rows += [f"{layer.name} {float(layer.bottom_scale)!r}\n" for layer in table.layers]
    return "".join(rows)


def scan(text: str) -> Scan:
    """Every layer of `text` with both its rows in 64-bit floats, and all problems of the text."""
    return pair_layers(parse_rows(text, dtype=np.float64, dead_value=0.0))


def write_v1(table: CalibrationTable) -> str:
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
    refuse_weight_rows(table, "tool-v1")
    raise_first_error(_lint_v1(table), "tool-v1 table")
    rows = [f"{layer.name}{WEIGHT_SUFFIX} {_weight_text(layer)}\n" for layer in table.layers]
    rows += [f"{name} {float(scale)!r}\n" for name, scale in table.blob_scales.items()]
    return "".join(rows)


def scan_v1(text: str) -> Scan:
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


def _lint_v1(table: CalibrationTable) -> list[Finding]:
    # The bottom scale is not written: any valid one in its place lets the other rules speak.
    layers = tuple(replace(layer, bottom_scale=1.0) for layer in table.layers)
    findings = lint_layers(CalibrationTable(layers), zero_is_dead=True)
    for name, scale in table.blob_scales.items():
        problem = name_problem(name) or scale_problem(scale)
        if problem is not None:
            findings.append(Finding("error", None, None, f"blob {name}: {problem}"))
    return findings


def _weight_text(layer: LayerScales) -> str:
    """The weight scales of `layer` with all digits, 0 where a channel is dead."""
    dead = set(layer.dead_channels)
    scales = layer.weight_scales.tolist()
    return " ".join(repr(0.0 if c in dead else scale) for c, scale in enumerate(scales))
