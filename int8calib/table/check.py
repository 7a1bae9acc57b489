"""Check a table by the rules of its format, and against what a network needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.levels import LEVELS, WINOGRAD_LEVELS, WINOGRAD_ROW_SUM
from int8calib.table.formats import detect_format, get_format
from int8calib.table.model import CalibrationTable, LayerScales, Requirement, RowRequirement
from int8calib.table.rules import WEIGHT_MARK, Finding, Scan, lint_layers, sort_findings

# Two ways to the same absmax differ by rounding and by the digits of `%f`, not by more.
SAME = 1e-3
# Clipping methods (aciq, mse) move a weight scale by less than this factor.
DEFAULT_TOLERANCE = 2.0
# Weights that were rounded before the scales were written may leave so many levels unused.
UNUSED = 2
WHOLE = 0.01
# Rows whose levels add up to this share of what int8 winograd holds use what they may.
NEARLY_FULL = 0.9

_Array = NDArray[np.floating[Any]]


def check_table(
    source: str | CalibrationTable,
    *,
    requirements: Sequence[Requirement] | None = None,
    rows: Sequence[RowRequirement] = (),
    format: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> list[Finding]:
    """Find what is wrong with a table.

    Parameters
    ----------
    source : str or CalibrationTable
        The text of a table, which is held to the rules of its format; or a table, held to those
        of ncnn.
    requirements : sequence of Requirement, optional
        What the network needs.
    rows : sequence of RowRequirement
        Weight rows that it needs besides; used with `requirements` only.
    format : str, optional
        The format of the text; told from the content otherwise.
    tolerance : float
        A weight scale further than this factor from what the weights give is an error, a smaller
        difference a warning.

    Returns
    -------
    list of Finding
        Errors first, then by line.

    Raises
    ------
    OptionError
        For an unknown format.
    """
    if isinstance(source, CalibrationTable):
        scan = Scan(source, tuple(lint_layers(source)))
    else:
        chosen = detect_format(source) if format is None else get_format(format)
        scan = chosen.scan(source)
    findings = list(scan.findings)
    if requirements is None:
        findings += _check_lone_rows(scan)
    else:
        findings += _check_requirements(scan, requirements, tolerance)
        findings += _check_rows(scan, requirements, rows, tolerance)
    return sort_findings(findings)


def _check_lone_rows(scan: Scan) -> list[Finding]:
    """A single weight row of one scale, which is whole for one type of layer only."""
    keys = scan.table.weight_rows
    owners = {key: key.rpartition(WEIGHT_MARK)[0] for key in keys}
    return [
        Finding(
            "warning",
            scan.lines.get(key),
            owner,
            f"{owner} has one weight scale and no bottom scale: right for an Embed, any other "
            "layer stays in float",
        )
        for key, owner in owners.items()
        if list(owners.values()).count(owner) == 1
    ]


def _check_rows(
    scan: Scan,
    requirements: Sequence[Requirement],
    rows: Sequence[RowRequirement],
    tolerance: float,
) -> list[Finding]:
    """The weight rows of layers that have no bottom scale."""
    given = scan.table.weight_rows
    if scan.table.blob_scales and not given:
        return []
    findings = []
    halves = {requirement.name for requirement in requirements}
    needed = {row.key for row in rows}
    reported = {finding.layer for finding in scan.findings}
    for key in given.keys() - needed:
        owner = key.rpartition(WEIGHT_MARK)[0]
        if owner in halves:
            message = f"{owner} has weight scales but no bottom scale, it stays in float"
            findings.append(Finding("error", scan.lines.get(key), owner, message))
        else:
            message = f"{key}: the network has no layer that needs this row, it does nothing"
            findings.append(Finding("warning", scan.lines.get(key), owner, message))
    for row in rows:
        owner, line = row.key.rpartition(WEIGHT_MARK)[0], scan.lines.get(row.key)
        scales = given.get(row.key)
        if scales is None:
            if owner in reported:
                continue
            if any(key.rpartition(WEIGHT_MARK)[0] == owner for key in given):
                message = f"{row.key}: no such row, which {row.ncnn_type} {owner} needs"
                findings.append(Finding("error", None, owner, message))
            else:
                reported.add(owner)
                message = f"{owner}: no rows, the layer stays in float"
                findings.append(Finding("warning", None, owner, message))
        elif scales.size != row.weight_count:
            message = (
                f"{row.key}: {scales.size} weight scales, {row.ncnn_type} needs {row.weight_count}"
            )
            findings.append(Finding("error", line, owner, message))
        elif row.scales is not None and not _same(_alive(scales), _alive(row.scales)):
            actual, wanted = _alive(scales), _alive(row.scales)
            findings.append(_contradiction(row.key, line, actual, wanted, tolerance))
    return findings


def _check_requirements(
    scan: Scan, requirements: Sequence[Requirement], tolerance: float
) -> list[Finding]:
    """What the network says about the rows that could be read."""
    table = scan.table
    if table.blob_scales and all(math.isnan(layer.bottom_scale) for layer in table.layers):
        return _check_blobs(table, requirements)
    layers = {layer.name: layer for layer in table.layers}
    needed = {requirement.name for requirement in requirements}
    # A layer that has a finding already is not missing, its rows are only unusable.
    reported = {finding.layer for finding in scan.findings}
    reported |= {key.rpartition(WEIGHT_MARK)[0] for key in table.weight_rows}
    if layers and needed and not layers.keys() & needed:
        message = "no layer of the table is in the network: this is another network's table"
        return [Finding("error", None, None, message)]
    findings = [
        Finding(
            "warning",
            scan.lines.get(name),
            name,
            f"{name}: the network has no such layer that ncnn quantizes, its rows do nothing",
        )
        for name in layers
        if name not in needed
    ]
    for requirement in requirements:
        layer = layers.get(requirement.name)
        if layer is not None:
            line = scan.lines.get(layer.name)
            findings += _check_layer(layer, requirement, line, tolerance)
            if requirement.caution is not None:
                message = f"{layer.name}: had better stay in float, without rows: "
                finding = Finding("warning", line, layer.name, message + requirement.caution)
                findings.append(finding)
        elif requirement.name not in reported:
            message = f"{requirement.name}: no rows, the layer stays in float"
            if requirement.caution is not None:
                message += f", and that is right: {requirement.caution}"
            findings.append(Finding("warning", None, requirement.name, message))
    return findings + _check_shared_bottoms(layers, requirements, scan.lines)


def _check_blobs(table: CalibrationTable, requirements: Sequence[Requirement]) -> list[Finding]:
    missing = {
        requirement.bottom: requirement.name
        for requirement in reversed(requirements)
        if requirement.bottom is not None and requirement.bottom not in table.blob_scales
    }
    return [
        Finding("error", None, layer, f"{layer}: no scale for the blob {blob} that it reads")
        for blob, layer in missing.items()
    ]


def _check_shared_bottoms(
    layers: Mapping[str, LayerScales], requirements: Sequence[Requirement], lines: Mapping[str, int]
) -> list[Finding]:
    """Requantize fusion takes the bottom scale of a blob's first consumer for all of them."""
    findings = []
    first: dict[str, LayerScales] = {}
    for requirement in requirements:
        layer = layers.get(requirement.name)
        if layer is None or requirement.bottom is None:
            continue
        known = first.setdefault(requirement.bottom, layer)
        if not math.isclose(known.bottom_scale, layer.bottom_scale, rel_tol=1e-6):
            message = (
                f"{layer.name}: bottom scale {layer.bottom_scale:.9g}, but {known.name} reads the "
                f"same blob {requirement.bottom} with {known.bottom_scale:.9g}; one scale is right"
            )
            findings.append(Finding("error", lines.get(layer.name), layer.name, message))
    return findings


def _check_layer(
    layer: LayerScales, requirement: Requirement, line: int | None, tolerance: float
) -> list[Finding]:
    """The count of weight scales, then their values, one finding at most."""
    count = layer.weight_scales.size
    if count != requirement.weight_count:
        message = (
            f"{layer.name}: {count} weight scales, {requirement.ncnn_type} needs "
            f"{requirement.weight_count}"
        )
        return [Finding("error", line, layer.name, message)]
    folded, raw = requirement.weight_scales_folded, requirement.weight_scales_raw
    expected, other = (folded, raw) if requirement.folded else (raw, folded)
    if expected is None:
        return []
    actual = _alive(layer.weight_scales, layer.dead_channels)
    wanted = _alive(expected)
    same = _same(actual, wanted)
    if not same and other is not None and _same(actual, _alive(other)):
        made, needs = ("un", "") if requirement.folded else ("", "un")
        message = (
            f"{layer.name}: made from {made}folded weights, the network's are {needs}folded "
            "(BatchNorm)"
        )
        return [Finding("error", line, layer.name, message)]
    if requirement.level_sums is not None:
        sums = requirement.level_sums(actual)
        if sums.max() > WINOGRAD_ROW_SUM:
            return [_overflow(layer.name, line, actual, sums)]
        least = wanted * (WINOGRAD_LEVELS / requirement.levels)
        few = (actual < least * (1 - SAME)) & (sums < NEARLY_FULL * WINOGRAD_ROW_SUM)
        if not few.any() and (actual <= wanted * (LEVELS / requirement.levels) * (1 + SAME)).all():
            return []
    if same:
        return []
    levels = WINOGRAD_LEVELS if requirement.levels == LEVELS else LEVELS
    if _same(actual, _alive(expected * (levels / requirement.levels))):
        message = f"{layer.name}: weight scales for {levels} levels, {requirement.levels} expected"
        return [Finding("warning", line, layer.name, message)]
    if _rounded_before(actual, wanted, requirement.levels):
        return []
    return [_contradiction(layer.name, line, actual, wanted, tolerance)]


def _overflow(name: str, line: int | None, scales: _Array, sums: _Array) -> Finding:
    worst = int(np.argmax(sums))
    message = (
        f"{name}: the levels of channel {worst} add up to {sums[worst]:.0f}, int8 winograd holds "
        f"{WINOGRAD_ROW_SUM}: outputs may overflow; a weight scale of about "
        f"{float(scales[worst]) * WINOGRAD_ROW_SUM / sums[worst]:.4g} is right in place of "
        f"{float(scales[worst]):.6g}, or winograd off"
    )
    return Finding("error", line, name, message)


def _rounded_before(actual: _Array, wanted: _Array, levels: int) -> bool:
    """Whether each row's largest weight is a whole level, and one of the last."""
    largest = levels * actual / wanted
    whole = np.abs(largest - np.rint(largest)) < WHOLE
    last = (largest > levels - UNUSED - WHOLE) & (largest < levels + WHOLE)
    return bool((whole & last).all())


def _contradiction(
    name: str, line: int | None, actual: _Array, wanted: _Array, tolerance: float
) -> Finding:
    ratios = actual / wanted
    worst = int(np.argmax(np.abs(np.log(ratios))))
    ratio = float(ratios[worst])
    far = not 1 / tolerance <= ratio <= tolerance
    effect = "the weights saturate" if ratio > 1 else "levels are wasted"
    message = (
        f"{name}: weight scale {float(actual[worst]):.6g} of channel {worst} is {ratio:.4g} times "
        f"what the weights give ({float(wanted[worst]):.6g}): {effect}"
    )
    return Finding("error" if far else "warning", line, name, message)


def _alive(scales: _Array, dead: Sequence[int] = ()) -> _Array:
    """`scales` in 64 bits with 1 for every dead channel, whatever marks it."""
    result: NDArray[np.float64] = np.array(scales, dtype=np.float64)
    result[~np.isfinite(result) | (result <= 0)] = 1.0
    result[list(dead)] = 1.0
    return result


def _same(actual: _Array, wanted: _Array) -> bool:
    return actual.shape == wanted.shape and bool(np.allclose(actual, wanted, rtol=SAME, atol=0.0))
