"""The ncnn format: the calibration table that ncnn2int8 reads.

All weight rows in network order, then all bottom rows, then the weight rows of layers without a
bottom scale (Embed, MultiHeadAttention, RNN, LSTM, GRU); single spaces, nine significant digits
(enough for every 32-bit float), a dead channel as 1. Format: ncnn, tools/quantize/ncnn2table.cpp
(the writer) and ncnn2int8.cpp (the reader).
"""

from __future__ import annotations

import math

import numpy as np

from int8calib.errors import TableError
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.table.rows import pair_layers, parse_rows
from int8calib.table.rules import WEIGHT_SUFFIX, Scan, lint_layers, raise_first_error

SUMMARY = "what ncnn2int8 reads: two rows a layer"


def write(table: CalibrationTable) -> str:
    """The text of `table`; raises TableError naming the layer that breaks a rule."""
    if not table.layers and not table.weight_rows:
        raise TableError(
            "the table holds no layers, and the ncnn format needs weight and bottom scales of each"
        )
    raise_first_error(lint_layers(table), "ncnn table")
    rows = [f"{layer.name}{WEIGHT_SUFFIX} {_weights(layer)}\n" for layer in table.layers]
    rows += [f"{layer.name} {_digits(layer.bottom_scale)}\n" for layer in table.layers]
    rows += [
        f"{key} {' '.join(map(_digits, scales.tolist()))}\n"
        for key, scales in table.weight_rows.items()
    ]
    return "".join(rows)


def scan(text: str) -> Scan:
    """Every layer of `text` with both its rows, and all problems of the text.

    A weight scale of inf is how ncnn2table writes a dead channel: it reads as 1, as a warning.
    """
    return pair_layers(parse_rows(text, dtype=np.float32, dead_value=math.inf))


def _weights(layer: LayerScales) -> str:
    dead = set(layer.dead_channels)
    # ncnn computes in 32-bit floats: the text is that float's, not its 64-bit neighbor's.
    scales = np.asarray(layer.weight_scales, np.float32).astype(np.float64).tolist()
    return " ".join("1" if c in dead else f"{scale:.9g}" for c, scale in enumerate(scales))


def _digits(scale: float) -> str:
    return f"{float(np.float32(scale)):.9g}"
