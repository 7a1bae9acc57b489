"""Read a text of one row a line into weight rows and blob rows, and check them.

The formats ncnn, tool and tool-v1 share this layout: `<layer>_param_0 <scale> ...` is a weight
row, `<name> <scale>` a blob row; layers of ncnn with several weights (MultiHeadAttention, RNN,
LSTM, GRU) have rows `<layer>_param_1` and so on, and no blob row. Each finding says what ncnn's
reader (`read_int8scale_table` in tools/quantize/ncnn2int8.cpp) would make of the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.table.rules import (
    MAX_KEY_BYTES,
    ROW_KEY,
    WEIGHT_MARK,
    WEIGHT_SUFFIX,
    Finding,
    Scan,
    Severity,
    name_problem,
    scale_problem,
)

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(?:inf|nan|infinity)", re.IGNORECASE)
# Six decimals, at most three digits of them used: what printf's %f leaves of a small scale.
_FLUSHED = re.compile(r"0\.000\d{3}")


@dataclass(frozen=True)
class WeightRow:
    """The scales of one layer's weights; `dead` lists the channels without weights."""

    line: int
    scales: NDArray[np.floating[Any]]
    dead: tuple[int, ...]


@dataclass(frozen=True)
class BlobRow:
    """The scale of one blob, or of one layer's bottom blob."""

    line: int
    scale: float


@dataclass
class Rows:
    """All usable rows of a text by name, and what is wrong with the others (`spoiled`).

    `more_weights` are those of a layer with numbers above 0, by their keys.
    """

    dtype: type[np.float32] | type[np.float64]
    dead_value: float
    weights: dict[str, WeightRow] = field(default_factory=dict)
    more_weights: dict[str, dict[str, WeightRow]] = field(default_factory=dict)
    blobs: dict[str, BlobRow] = field(default_factory=dict)
    spoiled: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def report(self, severity: Severity, line: int, layer: str | None, message: str) -> None:
        """Note a finding; an error also marks the layer's rows as unusable."""
        self.findings.append(Finding(severity, line, layer, message))
        if severity == "error" and layer is not None:
            self.spoiled.add(layer)


def parse_rows(text: str, *, dtype: type[np.float32] | type[np.float64], dead_value: float) -> Rows:
    """Every row of `text`; scales are kept as `dtype`.

    `dead_value` is how the format's own writer marks a channel of zero weights (inf in
    ncnn2table, 0 in the reference tool); such a scale becomes 1.0 and is listed as dead.
    """
    rows = Rows(dtype, dead_value)
    first_line: dict[str, int] = {}
    for number, line in _lines(text, rows):
        key, *tokens = line.split()
        is_weight = WEIGHT_MARK in key
        match = ROW_KEY.fullmatch(key)
        layer = match[1] if match else key
        problem = _key_problem(key, layer)
        if problem is None and key in first_line:
            problem = f"{key} stood on line {first_line[key]} already, ncnn keeps the last row"
        first_line.setdefault(key, number)
        if problem is None and not tokens:
            problem = f"{key} has no scale"
        if problem is not None:
            rows.report("error", number, layer, problem)
            continue
        if key.startswith("#"):
            message = f"ncnn has no comments: this is a row for a layer named {layer}"
            rows.report("warning", number, layer, message)
        if is_weight:
            _add_weight_row(rows, number, key, layer, tokens)
        else:
            _add_blob_row(rows, number, layer, tokens)
    return rows


def _lines(text: str, rows: Rows) -> Iterator[tuple[int, str]]:
    """Each line that holds a row and nothing that would break it, with its number."""
    if text.startswith("\ufeff"):
        rows.report("error", 1, None, "a byte order mark, ncnn takes it for part of the first name")
        text = text[1:]
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    filled = [number for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        rows.report("error", 1, None, "the table is empty, every layer would stay in float")
        return
    if len(lines) - filled[-1] > 1:
        rows.report("warning", filled[-1] + 1, None, "blank lines at the end of the table")
    for number, line in enumerate(lines[: filled[-1]], start=1):
        if not line.strip():
            message = "a blank line, ncnn stops reading here and loses all rows below"
            rows.report("error", number, None, message)
        elif any((c.isspace() and c != " ") or ord(c) < 32 for c in line):
            bad = next(c for c in line if (c.isspace() and c != " ") or ord(c) < 32)
            what = "a tab" if bad == "\t" else f"the character {bad!r}"
            layer = line.split()[0].removesuffix(WEIGHT_SUFFIX) if line.split() else None
            rows.report("error", number, layer, f"{what} in a row, fields end at spaces only")
        else:
            yield number, line


def _key_problem(key: str, layer: str) -> str | None:
    size = len(key.encode("utf-8", "surrogatepass"))
    if size > MAX_KEY_BYTES:
        return f"a key of {size} bytes, ncnn cuts it after {MAX_KEY_BYTES}: {key[:40]}..."
    if WEIGHT_MARK in key and not ROW_KEY.fullmatch(key):
        return f"{key} holds {WEIGHT_MARK!r} but is no weight row (<layer>{WEIGHT_SUFFIX})"
    return name_problem(layer)


def _number(token: str) -> float | str:
    """The value of one field, or what is wrong with it."""
    if _NUMBER.fullmatch(token) or _NOT_FINITE.fullmatch(token):
        return float(token)
    shown = token if len(token) <= 40 else f"{token[:40]}..."
    return f"{shown!r} is no number, ncnn would repeat the scale before it"


def _add_weight_row(rows: Rows, line: int, key: str, layer: str, tokens: list[str]) -> None:
    values: list[float] = []
    dead: list[int] = []
    for channel, token in enumerate(tokens):
        value = _number(token)
        if value == rows.dead_value:
            dead.append(channel)
            value = 1.0
        problem = value if isinstance(value, str) else scale_problem(value)
        if problem is not None or isinstance(value, str):
            message = f"{layer}: weight scale of channel {channel}: {problem}"
            rows.report("error", line, layer, message)
            return
        values.append(value)
    if dead:
        shown = ", ".join(map(str, dead[:5])) + (", ..." if len(dead) > 5 else "")
        message = (
            f"{layer}: {len(dead)} of {len(tokens)} channels without weights, with the scale "
            f"{rows.dead_value:g} (channels {shown}); 1 is safe on every kernel"
        )
        rows.report("warning", line, layer, message)
    _warn_flushed(rows, line, layer, tokens)
    row = WeightRow(line, np.array(values, rows.dtype), tuple(dead))
    if key.endswith(WEIGHT_SUFFIX):
        rows.weights[layer] = row
    else:
        rows.more_weights.setdefault(layer, {})[key] = row


def _add_blob_row(rows: Rows, line: int, name: str, tokens: list[str]) -> None:
    if len(tokens) > 1:
        message = f"{name}: {len(tokens)} bottom scales, exactly 1 is right"
        rows.report("error", line, name, message)
        return
    value = _number(tokens[0])
    problem = value if isinstance(value, str) else scale_problem(value)
    if problem is not None or isinstance(value, str):
        rows.report("error", line, name, f"{name}: {problem}")
        return
    _warn_flushed(rows, line, name, tokens)
    rows.blobs[name] = BlobRow(line, float(rows.dtype(value)))


def _warn_flushed(rows: Rows, line: int, layer: str, tokens: list[str]) -> None:
    token = next((token for token in tokens if _FLUSHED.fullmatch(token)), None)
    if token is not None:
        digits = len(token[2:].lstrip("0"))
        message = f"{layer}: {token} keeps {digits} significant digits, %.9g keeps all"
        rows.report("warning", line, layer, message)


def _weight_rows(rows: Rows) -> dict[str, WeightRow]:
    """Take out the weight rows of layers that have no blob row, and return them by their keys.

    They are those with several weight rows, and one with a single scale: it may be an Embed's.
    """
    alone: dict[str, WeightRow] = {}
    for name in [*rows.weights, *(name for name in rows.more_weights if name not in rows.weights)]:
        first, more = rows.weights.get(name), rows.more_weights.get(name, {})
        if name in rows.spoiled or not (more or (first is not None and first.scales.size == 1)):
            continue
        if name in rows.blobs:
            if more:
                key, row = next(iter(more.items()))
                message = (
                    f"{key}: {name} has a bottom scale, and the weight row of such a layer is "
                    f"{name}{WEIGHT_SUFFIX} alone"
                )
                rows.report("error", row.line, name, message)
            continue
        if first is None:
            key, row = next(iter(more.items()))
            rows.report("error", row.line, name, f"{key}: the row {name}{WEIGHT_SUFFIX} is missing")
            continue
        alone[name + WEIGHT_SUFFIX] = rows.weights.pop(name)
        alone.update(sorted(more.items()))
    return alone


def pair_layers(rows: Rows) -> Scan:
    """Layers from the two rows each, in the order of the weight rows; half pairs are errors."""
    alone = _weight_rows(rows)
    layers = []
    for name, row in rows.weights.items():
        blob = rows.blobs.get(name)
        if blob is not None and name not in rows.spoiled:
            layers.append(LayerScales(name, row.scales, blob.scale, dead_channels=row.dead))
    half = rows.weights.keys() ^ rows.blobs.keys()
    for name in sorted(half - rows.spoiled):
        if name in rows.weights:
            line = rows.weights[name].line
            message = f"{name} has weight scales but no bottom scale, it stays in float"
        else:
            line = rows.blobs[name].line
            message = (
                f"{name} has a bottom scale but no weight scales, ncnn stops quantizing there "
                "and every later layer of its type stays in float"
            )
        rows.report("error", line, name, message)
    lines = {name: row.line for name, row in [*rows.weights.items(), *alone.items()]}
    weight_rows = {key: row.scales for key, row in alone.items()}
    table = CalibrationTable(tuple(layers), weight_rows=weight_rows)
    return Scan(table, tuple(rows.findings), lines)
