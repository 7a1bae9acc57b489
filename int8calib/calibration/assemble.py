"""Assembly of a calibration table, with its evidence, from layers and statistics.

Nothing here needs the network: the same code serves a calibration and statistics from a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import int8calib
from int8calib.arrays import Array
from int8calib.calibration.layers import QuantLayer
from int8calib.calibration.options import Options
from int8calib.calibration.scales import dead_rows, weight_scales
from int8calib.calibration.selection import (
    blob_methods,
    blocked_warnings,
    chosen_layers,
    default_method,
    grouped_in_float,
    matching,
    row_owner,
)
from int8calib.calibration.stability import UNSTEADY, summary, threshold_spreads
from int8calib.calibration.statistics.histogram import Histogram
from int8calib.calibration.statistics.store import Statistics
from int8calib.calibration.thresholds import find_thresholds
from int8calib.errors import OptionError, StatisticsError
from int8calib.levels import LEVELS
from int8calib.table.model import BottomEvidence, CalibrationTable, LayerScales
from int8calib.words import listed

FEW_IMAGES = 50
"""Fewer images than this are warned of."""
FAR_BELOW = 0.1
"""A threshold below this share of the absmax is warned of."""
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a calibration gives.

    Attributes
    ----------
    table : CalibrationTable
        The table, with its evidence.
    statistics : Statistics
        What it was made from.
    warnings : tuple of str
        What to look at, a line each.
    """

    table: CalibrationTable
    statistics: Statistics
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Blobs:
    """The blobs of a network.

    Attributes
    ----------
    keys : mapping of str to str
        Every blob by name, with the key of its last version.
    inputs : frozenset of str
        The keys of those that are inputs.
    """

    keys: Mapping[str, str]
    inputs: frozenset[str]


def select_layers(
    layers: Sequence[QuantLayer],
    options: Options,
    blocked: Mapping[str, str] = MappingProxyType({}),
    rows: Iterable[str] = (),
) -> tuple[QuantLayer, ...]:
    """Return the layers that the options want in INT8.

    The methods of layers and their 6-bit weights are checked here too, before any image runs.

    Parameters
    ----------
    layers : sequence of QuantLayer
        All that can be INT8.
    options : Options
    blocked : mapping of str to str
        Layers that stay in float, with what stands in their way.
    rows : iterable of str
        Keys of weight rows, whose layers patterns may name too.

    Raises
    ------
    OptionError
        For a pattern without a layer, and where no layer is left.
    """
    chosen = chosen_layers(layers, options, blocked, rows)
    blob_methods(layers, chosen, options)
    names = [*(layer.name for layer in layers), *blocked]
    for pattern in options.weights.six_bit:
        matching(names, pattern, "six-bit")
    return tuple(layer for layer in layers if layer.name in set(chosen))


def assemble(
    layers: Sequence[QuantLayer],
    statistics: Statistics,
    options: Options,
    *,
    source: str,
    blobs: Blobs | None = None,
    meta: Mapping[str, Any] = MappingProxyType({}),
    blocked: Mapping[str, str] = MappingProxyType({}),
    warnings: Sequence[str] = (),
    weight_rows: Mapping[str, Array] = MappingProxyType({}),
) -> Calibration:
    """Return the table of a network from the statistics of its blobs.

    Consumers of a blob share its scale. A layer whose bottom is always zero is left out (ncnn
    then runs it in float), with a warning.

    Parameters
    ----------
    layers : sequence of QuantLayer
        All that can be INT8.
    statistics : Statistics
        Of the blobs that they read, with histograms.
    options : Options
    source : str
        What messages call the network.
    blobs : Blobs, optional
        All blobs, for `options.all_blobs`.
    meta : mapping
        JSON values for the report.
    blocked : mapping of str to str
        Layers that stay in float, with what stands in their way.
    warnings : sequence of str
        Those of the network, which come first.
    weight_rows : mapping of str to float32 (rows,)
        What the table holds besides, by the key of the row, but for layers that are left out.

    Raises
    ------
    StatisticsError
        Where statistics are missing, or every bottom is zero.
    OptionError
        For a pattern without a layer, and where no layer is left.
    """
    chosen = select_layers(layers, options, blocked, weight_rows)
    named = set(chosen_layers(layers, options, blocked, weight_rows))
    weight_rows = {key: row for key, row in weight_rows.items() if row_owner(key) in named}
    methods, notes = blob_methods(layers, [layer.name for layer in chosen], options)
    wanted = dict(methods)
    if options.all_blobs and blobs is not None:
        for key in blobs.keys.values():
            wanted.setdefault(key, default_method(key in blobs.inputs, options))
    evidence = _evidence(statistics, wanted, options)
    rows, of_layers = _rows(chosen, evidence, options)
    if not rows and not weight_rows:
        raise StatisticsError(f"{source}: every quantized layer has a bottom of zeros")
    if options.two_passes and statistics.one_pass:
        notes.append(
            f"method {options.method} repeats another tool, but the statistics were counted in one "
            "pass; collect them with --exact for that tool's own bins"
        )
    in_float = blocked_warnings(grouped_in_float(layers, options), options)
    of_run = _run_warnings(statistics, evidence, methods)
    warnings = [*warnings, *in_float, *of_run, *notes, *of_layers]
    table = CalibrationTable(
        tuple(rows),
        _blob_scales(blobs, evidence) if options.all_blobs and blobs is not None else {},
        {
            "int8calib": int8calib.__version__,
            "images": statistics.images,
            "options": asdict(options),
            **meta,
            "stability": summary({blob: evidence[blob].spread for blob in methods}),
            "warnings": warnings,
        },
        weight_rows,
    )
    return Calibration(table, statistics, tuple(warnings))


def _evidence(
    statistics: Statistics, methods: Mapping[str, str], options: Options
) -> dict[str, BottomEvidence]:
    """The threshold of each blob of `methods`, with what speaks for and against it."""
    missing = [blob for blob in methods if blob not in statistics.histograms]
    if missing:
        raise StatisticsError(
            f"the statistics hold no histogram of the blob {missing[0]} ({len(missing)} are "
            "missing); collect them for this network, with all blobs if the format needs them"
        )
    histograms = {blob: statistics.histograms[blob] for blob in methods}
    thresholds = find_thresholds(histograms, methods, percentile=options.percentile)
    spreads = threshold_spreads(
        histograms, statistics.halves, methods, percentile=options.percentile
    )
    return {
        blob: BottomEvidence(
            blob,
            methods[blob],
            histogram.absmax,
            thresholds[blob].value,
            thresholds[blob].bin,
            _clipped(histogram, thresholds[blob].value),
            spreads.get(blob),
        )
        for blob, histogram in histograms.items()
    }


def _clipped(histogram: Histogram, threshold: float) -> float:
    return histogram.clipped(threshold) if histogram.absmax else 0.0


def _rows(
    layers: Iterable[QuantLayer], of_blobs: Mapping[str, BottomEvidence], options: Options
) -> tuple[list[LayerScales], list[str]]:
    """The rows of every layer with a living bottom, and what there is to say."""
    rows, warnings = [], []
    weights = options.weight_options()
    for layer in layers:
        evidence = of_blobs[layer.blob]
        if evidence.threshold <= 0:
            warnings.append(
                f"{layer.name}: its bottom {evidence.blob} is 0 in every image; left in float"
            )
            continue
        dead = dead_rows(layer, weights)
        if evidence.threshold < FAR_BELOW * evidence.absmax:
            warnings.append(
                f"{layer.name}: threshold {evidence.threshold:.4g} is far below "
                f"absmax {evidence.absmax:.4g} of {evidence.blob}"
            )
        scales = weight_scales(layer, weights)
        rows.append(LayerScales(layer.name, scales, LEVELS / evidence.threshold, evidence, dead))
    return rows, [*warnings, *_dead_warnings(rows)]


def _blob_scales(blobs: Blobs, evidence: Mapping[str, BottomEvidence]) -> dict[str, float]:
    """127 over threshold by blob name, last version each; a blob of zeros has none."""
    return {
        name: LEVELS / evidence[key].threshold
        for name, key in blobs.keys.items()
        if evidence[key].threshold > 0
    }


def _run_warnings(
    statistics: Statistics, evidence: Mapping[str, BottomEvidence], bottoms: Iterable[str]
) -> list[str]:
    warnings = []
    if statistics.images < FEW_IMAGES and evidence:
        warnings.append(
            f"few images: {statistics.images}; thresholds settle from about {FEW_IMAGES} on"
        )
    spreads = {blob: evidence[blob].spread or 0.0 for blob in bottoms}
    moving = sorted((b for b in spreads if spreads[b] > UNSTEADY), key=lambda b: -spreads[b])
    if moving:
        shown = listed((f"{blob} by {100 * spreads[blob]:.0f} %" for blob in moving), _SHOWN)
        warnings.append(f"more images would still move the thresholds of {shown}")
    return warnings


def _dead_warnings(rows: Sequence[LayerScales]) -> list[str]:
    """One warning for all weight rows that are dead."""
    dead = [row for row in rows if row.dead_channels]
    if not dead:
        return []
    counts = (f"{row.name} {len(row.dead_channels)} of {len(row.weight_scales)}" for row in dead)
    total = sum(len(row.dead_channels) for row in dead)
    return [
        f"{total} weight rows are dead (nothing in them counts) and get the scale 1: "
        f"{listed(counts, _SHOWN)}"
    ]


def tool_rows(
    table: CalibrationTable, layers: Sequence[QuantLayer], *, one_scale: bool
) -> CalibrationTable:
    """Return a table as the reference tool's latest version has it: of convolutions alone.

    Parameters
    ----------
    table : CalibrationTable
    layers : sequence of QuantLayer
        Those that can be INT8.
    one_scale : bool
        Whether a layer has one weight scale, as with `--group 0`.

    Raises
    ------
    OptionError
        With `one_scale` for a layer whose scales differ: it was made with another granularity.
    """
    convolutions = {layer.name for layer in layers if layer.kind != "InnerProduct"}
    rows = tuple(layer for layer in table.layers if layer.name in convolutions)
    table = replace(table, layers=rows)
    return _one_scale_rows(table) if one_scale else table


def _one_scale_rows(table: CalibrationTable) -> CalibrationTable:
    """The table with one weight scale a layer; raises `OptionError` where they differ."""
    rows = []
    for layer in table.layers:
        alive = [c for c in range(len(layer.weight_scales)) if c not in set(layer.dead_channels)]
        if len(set(layer.weight_scales[alive].tolist())) > 1:
            raise OptionError(f"layer {layer.name}: one weight scale a layer needs per-tensor")
        kept = alive[:1] or [0]
        dead = () if alive else (0,)
        rows.append(replace(layer, weight_scales=layer.weight_scales[kept], dead_channels=dead))
    return replace(table, layers=tuple(rows))


def tool_v1_rows(table: CalibrationTable, layers: Sequence[QuantLayer]) -> CalibrationTable:
    """Return a table as the reference tool's first version has it.

    That is one weight scale for each ungrouped or grouped convolution of a 1x1 or 3x3 window.
    """
    convolutions = [layer for layer in layers if layer.kind != "InnerProduct"]
    kept = {layer.name for layer in convolutions if layer.kernel in ((1, 1), (3, 3))}
    rows = tuple(layer for layer in table.layers if layer.name in kept)
    return _one_scale_rows(replace(table, layers=rows))
