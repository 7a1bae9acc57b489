"""From a Caffe network and its calibration table to the two ncnn models that run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.graph import Blob
from int8calib.ncnn.convert.network import convert_network
from int8calib.ncnn.convert.offsets import finer_rows, offset_groups, with_offsets
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.optimize import optimize_model
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.quantize import QUANTIZED, quantize_model, read_rows
from int8calib.ncnn.rounded import RoundedWeights
from int8calib.table.formats import get_format
from int8calib.table.model import CalibrationTable

SAME = 1e-3
"""Weights that were folded in two ways differ by less than this share of the largest."""


class NcnnPair(NamedTuple):
    """A network in ncnn: in float, and in INT8."""

    float_model: NcnnModel
    int8_model: NcnnModel


def float_model(
    net: Net, *, fold_bn: bool = True, outputs: Iterable[Blob] | None = None
) -> NcnnModel:
    """The float ncnn model of `net`, optimized where BatchNorm is folded; raises `ModelError`.

    `outputs`: convert only what these blobs need.
    """
    return _optimized(convert_network(net, outputs), fold_bn=fold_bn)


def _optimized(model: NcnnModel, *, fold_bn: bool) -> NcnnModel:
    return replace(model, layers=optimize_model(model.layers)) if fold_bn else model


def int8_model(
    model: NcnnModel,
    table: CalibrationTable,
    rounded: Mapping[str, RoundedWeights] = MappingProxyType({}),
    *,
    winograd: bool = True,
) -> NcnnModel:
    """The INT8 model of a float one; parameters and errors as of `ncnn_pair`.

    Bottoms that the table calls unsigned are stored with an offset.
    """
    unsigned = {rows.name for rows in table.layers if rows.unsigned}
    groups = [
        group
        for group in offset_groups(model.layers, {rows.name for rows in table.layers})
        if unsigned.issuperset(group.readers)
    ]
    rows = read_rows(get_format("ncnn").write(finer_rows(table, groups)), "the table")
    layers = {layer.name: layer for layer in model.layers}
    fitting = {
        name: each
        for name, each in rounded.items()
        if name in layers and name in table and _stands_for(each, layers[name])
    }
    others = [name for name in rounded if name in table and name not in fitting]
    notes = [f"{name}: ncnn has other weights there, they are rounded plainly" for name in others]
    made = quantize_model(model.layers, rows, rounded=fitting, winograd=winograd)
    return replace(model, layers=with_offsets(made, groups), notes=(*model.notes, *notes))


def _stands_for(rounded: RoundedWeights, layer: NcnnLayer) -> bool:
    """Whether levels stand for the weights that a layer has, as passes over the model left it."""
    if layer.type not in QUANTIZED or not layer.weights:
        return False
    weights = np.asarray(layer.weights[0], np.float32).reshape(-1)
    known = rounded.weights.reshape(-1)
    if weights.size != known.size:
        return False
    return bool(np.abs(weights - known).max() <= SAME * np.abs(known).max(initial=0))


def ncnn_pair(
    net: Net,
    table: CalibrationTable,
    *,
    fold_bn: bool = True,
    rounded: Mapping[str, RoundedWeights] = MappingProxyType({}),
    winograd: bool = True,
) -> NcnnPair:
    """Both ncnn models of a network.

    Parameters
    ----------
    net
        The float network.
    table
        Its calibration table.
    fold_bn
        Whether the table was made for folded BatchNorm, as is the default.
    rounded
        By layer: weights that are levels already. The float model does not depend on them. Where
        ncnn's weights are others, by a factor folded in for example, they are left aside, and a
        note of the INT8 model says so.
    winograd
        Whether ncnn may run by int8 winograd.

    Raises
    ------
    ModelError
        For a layer or option that ncnn does not have.
    TableError
        For a table that does not fit the network.
    WeightsError
        For levels that ncnn cannot hold.
    """
    model = convert_network(net)
    return converted_pair(model, table, fold_bn=fold_bn, rounded=rounded, winograd=winograd)


def converted_pair(
    model: NcnnModel,
    table: CalibrationTable,
    *,
    fold_bn: bool = True,
    rounded: Mapping[str, RoundedWeights] = MappingProxyType({}),
    winograd: bool = True,
) -> NcnnPair:
    """Both ncnn models of what `convert_network` gave; as `ncnn_pair`."""
    plain = _optimized(model, fold_bn=fold_bn)
    return NcnnPair(plain, int8_model(plain, table, rounded, winograd=winograd))
