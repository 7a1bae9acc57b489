"""Thresholds of blobs that an INT8 model stores with an offset, so that they have 255 levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from int8calib.caffe.engine.run import Net
from int8calib.calibration.statistics.histogram import Histogram
from int8calib.calibration.thresholds.mse import least_error_threshold
from int8calib.levels import LEVELS
from int8calib.ncnn.convert.deploy import float_model
from int8calib.ncnn.convert.offsets import OffsetGroup, offset_groups
from int8calib.ncnn.translate.network import TranslatedNet
from int8calib.table.model import CalibrationTable, LayerScales


def network_groups(
    net: Net, table: CalibrationTable, *, fold_bn: bool = True
) -> tuple[OffsetGroup, ...]:
    """Return what the INT8 model of a network and its table can store with an offset.

    Raises `ModelError` for a network that ncnn cannot express.
    """
    model = net.model if isinstance(net, TranslatedNet) else float_model(net, fold_bn=fold_bn)
    return offset_groups(model.layers, {rows.name for rows in table.layers})


def unsigned_table(
    table: CalibrationTable,
    groups: Sequence[OffsetGroup],
    histograms: Mapping[str, Histogram],
) -> CalibrationTable:
    """Return the table of an INT8 model that stores the blobs of `groups` with an offset.

    Finer steps leave more room: a threshold of the method `mse` is looked for anew, those of other
    methods stay. A group has the largest threshold of its blobs.

    Parameters
    ----------
    table : CalibrationTable
        One with evidence.
    groups : sequence of OffsetGroup
        Those of the model.
    histograms : mapping of str to Histogram
        Of the blobs that the table was made of.
    """
    rows = {layer.name: layer for layer in table.layers}
    known: dict[str, float] = {}
    for group in groups:
        threshold = max(_threshold(rows[name], histograms, known) for name in group.readers)
        for name in group.readers:
            rows[name] = replace(rows[name], bottom_scale=LEVELS / threshold, unsigned=True)
    return replace(table, layers=tuple(rows.values()))


def _threshold(
    rows: LayerScales, histograms: Mapping[str, Histogram], known: dict[str, float]
) -> float:
    """The threshold of a layer's bottom with 254 levels; `known` keeps that of each blob."""
    evidence = rows.evidence
    if evidence is None or evidence.method != "mse":
        return LEVELS / rows.bottom_scale
    if evidence.blob not in known:
        found = least_error_threshold(histograms[evidence.blob], 2 * LEVELS)
        known[evidence.blob] = found.value
    return known[evidence.blob]
