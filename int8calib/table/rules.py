"""The rules that a table's names and scales must keep, and findings for what breaks them.

The rules follow `read_int8scale_table` and `quantize_*` in ncnn's tools/quantize/ncnn2int8.cpp:
rows are cut at spaces, keys are read by `%255s`, `_param_` anywhere makes a weight row, and
the weight row of a layer is looked up through a 256-byte buffer holding `<name>_param_0`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import MASKED, is_masked
from int8calib.errors import TableError
from int8calib.table.model import CalibrationTable, LayerScales

WEIGHT_SUFFIX = "_param_0"
WEIGHT_MARK = "_param_"
ROW_KEY = re.compile(r"(.*)_param_([0-3])", re.DOTALL)
"""The key of a weight row: of most layers number 0 only."""
# 255 bytes hold a key; the weight row's key is the name and its suffix of 8 bytes.
MAX_KEY_BYTES = 255
MAX_NAME_BYTES = MAX_KEY_BYTES - len(WEIGHT_SUFFIX)
_PACK = 8
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a table.

    Attributes
    ----------
    severity : str
        ``error``: ncnn would misread the table or compute nonsense; ``warning``: it works, but
        somebody should look.
    line : int or None
        The line of the text, from 1; None where none belongs to the finding.
    layer : str or None
        The layer that it is about.
    message : str
        What is wrong.
    """

    severity: Severity
    line: int | None
    layer: str | None
    message: str

    def located(self, name: str) -> str:
        """One line of text, `name:line: message`, for the table file `name`."""
        place = name if self.line is None else f"{name}:{self.line}"
        return f"{place}: {self.message}"


@dataclass(frozen=True)
class Scan:
    """A table read leniently: rows that cannot be used are left out.

    Attributes
    ----------
    table : CalibrationTable
        The usable rows.
    findings : tuple of Finding
        What is wrong with the text.
    lines : mapping of str to int
        The line of each layer's weight row, where the format has lines.
    """

    table: CalibrationTable
    findings: tuple[Finding, ...] = ()
    lines: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort errors first, then by line (findings without one last), layer and message."""
    return sorted(
        findings,
        key=lambda f: (
            f.severity != "error",
            f.line is None,
            f.line or 0,
            f.layer or "",
            f.message,
        ),
    )


def raise_first_error(findings: Iterable[Finding], name: str) -> None:
    """Raise TableError for the topmost error, located in the file `name`; warnings pass."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        first = min(errors, key=lambda f: (f.line is None, f.line or 0))
        raise TableError(first.located(name))


def name_problem(name: str) -> str | None:
    """Why ncnn would misread the layer or blob name `name`; None when it would not.

    A leading `#` is allowed: ncnn has no comments, so such a name works like any other.
    """
    if not name:
        return "the name is empty"
    if any(c.isspace() or ord(c) < 32 or ord(c) == 127 for c in name):
        return f"the name {name!r} holds white space or a control character, ncnn cuts it there"
    if "\ufeff" in name:
        return f"the name {name!r} holds a byte order mark"
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return f"the name {name!r} cannot be written as UTF-8"
    if size > MAX_NAME_BYTES:
        return f"the name has {size} bytes, ncnn takes at most {MAX_NAME_BYTES}: {name[:40]}..."
    if WEIGHT_MARK in name:
        return f"the name {name!r} holds {WEIGHT_MARK!r}, ncnn takes its rows for weight rows"
    return None


def grouped_problem(group: int, outputs: int) -> str | None:
    """Tell why a convolution of several groups had better stay in float.

    Parameters
    ----------
    group : int
        Its groups of channels.
    outputs : int
        Its num_output.

    Returns
    -------
    str or None
        What goes wrong in INT8; None where nothing does. ncnn gives memory that nothing was
        written to (x86 with AVX, packing on, top not requantized; ARM is not affected). Source:
        ncnn's src/layer/x86/convolutiondepthwise_x86.cpp, and seen in its runtime.
    """
    if group < 2 or outputs < group or outputs // group % _PACK:
        return None
    return (
        f"ncnn on x86 returns uninitialized memory for an INT8 convolution of {group} groups with "
        f"{outputs // group} outputs each (a multiple of {_PACK})"
    )


def scale_problem(value: float) -> str | None:
    """Why `value` is no scale that ncnn can use as float32; None when it is one."""
    if not math.isfinite(value) or value <= 0:
        return f"{value:g} is no scale, it must be finite and above 0"
    # A C float above this limit reads as infinity, far below the smallest one as 0.
    with np.errstate(over="ignore", under="ignore"):
        single = np.float32(value)
    if not np.isfinite(single) or single == 0:
        return f"{value:g} does not fit a 32-bit float, ncnn would read {float(single):g}"
    return None


def _suspects(scales: NDArray[np.floating[Any]]) -> list[int]:
    """Where `scale_problem` may find something: all that is not plainly a float32 above 0."""
    with np.errstate(over="ignore", under="ignore"):
        single = scales.astype(np.float32)
    found: list[int] = np.flatnonzero(~((single > 0) & np.isfinite(single))).tolist()
    return found


def layer_problem(layer: LayerScales, *, zero_is_dead: bool = False) -> str | None:
    """The first rule that the rows of `layer` would break; None when they keep all.

    `zero_is_dead` lets a weight scale of 0 pass, as the reference tool writes it.
    """
    problem = name_problem(layer.name)
    if problem is not None:
        return problem
    if is_masked(layer.weight_scales):
        return f"weight scales in {MASKED}"
    scales = np.asarray(layer.weight_scales)
    if scales.ndim != 1 or scales.size == 0:
        return f"weight scales of shape {scales.shape}, one row of at least one scale is needed"
    dead = set(layer.dead_channels)
    if any(not 0 <= channel < scales.size for channel in dead):
        return f"dead channels {sorted(dead)} beyond its {scales.size} weight scales"
    for channel in _suspects(scales):
        value = float(scales[channel])
        if channel in dead or (zero_is_dead and value == 0):
            continue
        problem = scale_problem(value)
        if problem is not None:
            return f"weight scale of channel {channel}: {problem}"
    if math.isnan(layer.bottom_scale):
        return "has no bottom scale (the tool-v1 format holds scales of blobs instead)"
    problem = scale_problem(layer.bottom_scale)
    return None if problem is None else f"bottom scale: {problem}"


def duplicates(names: Sequence[str]) -> list[str]:
    """Return the names that stand more than once, in order of their second appearance."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for name in names:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)


def row_problem(key: str, scales: NDArray[np.floating[Any]]) -> str | None:
    """The first rule that a row of `weight_rows` would break; None when it keeps all."""
    match = ROW_KEY.fullmatch(key)
    if match is None:
        return f"the key {key!r}; expected <layer>_param_<0 to 3>"
    problem = name_problem(match[1])
    if problem is not None:
        return problem
    if scales.ndim != 1 or scales.size == 0:
        return f"weight scales of shape {scales.shape}; expected one row of at least one scale"
    return next(
        (found for i in _suspects(scales) if (found := scale_problem(float(scales[i])))), None
    )


def refuse_weight_rows(table: CalibrationTable, format: str) -> None:
    """Raise TableError where a table holds rows that a format has no place for."""
    if table.weight_rows:
        raise TableError(
            f"the row {next(iter(table.weight_rows))} has no bottom scale, and the {format} format "
            "holds none without; write the ncnn or the json format"
        )


def lint_layers(table: CalibrationTable, *, zero_is_dead: bool = False) -> list[Finding]:
    """Find the rules that the layers of `table` would break as rows, one error a layer at most."""
    findings = [
        Finding("error", None, name, f"layer {name}: stands more than once")
        for name in duplicates([layer.name for layer in table.layers])
    ]
    for layer in table.layers:
        problem = layer_problem(layer, zero_is_dead=zero_is_dead)
        if problem is not None:
            message = f"layer {layer.name}: {problem}"
            findings.append(Finding("error", None, layer.name, message))
    taken = {layer.name + WEIGHT_SUFFIX for layer in table.layers}
    for key, scales in table.weight_rows.items():
        problem = row_problem(key, scales)
        if problem is None and key in taken:
            problem = "stands among the rows of layers too"
        if problem is not None:
            findings.append(Finding("error", None, key, f"row {key}: {problem}"))
    return findings
