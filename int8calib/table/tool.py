"""A table comes in, the layout of the reference tool's latest version goes out, and back.

The reference tool (caffe-int8-convert-tool, "weight" version) writes the rows of the ncnn format
with every digit of a 64-bit float, and 0 (as `0.0`) for a channel whose weights are all below
1e-4.
"""

from __future__ import annotations

import numpy as np

from int8calib.errors import TableError
from int8calib.table.findings import Scan, raise_first_error
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.table.rows import pair_layers, parse_rows
from int8calib.table.rules import WEIGHT_SUFFIX, lint_layers

SUMMARY = "as the reference tool's latest version writes it: all digits, 0 for dead channels"


def write(table: CalibrationTable) -> str:
    """The text of `table`; raises TableError naming the layer that breaks a rule.

    A weight scale of 0 is written like a dead channel.
    """
    if not table.layers:
        raise TableError(
            "the table holds no layers, and the tool format needs weight and bottom scales of each"
        )
    raise_first_error(lint_layers(table, zero_is_dead=True), "tool table")
    rows = [f"{layer.name}{WEIGHT_SUFFIX} {weight_text(layer)}\n" for layer in table.layers]
    rows += [f"{layer.name} {float(layer.bottom_scale)!r}\n" for layer in table.layers]
    return "".join(rows)


def scan(text: str) -> Scan:
    """Every layer of `text` with both its rows in 64-bit floats, and all problems of the text."""
    return pair_layers(parse_rows(text, dtype=np.float64, dead_value=0.0))


def weight_text(layer: LayerScales) -> str:
    """The weight scales of `layer` with all digits, 0 where a channel is dead."""
    dead = set(layer.dead_channels)
    scales = layer.weight_scales.tolist()
    return " ".join(repr(0.0 if c in dead else scale) for c, scale in enumerate(scales))
