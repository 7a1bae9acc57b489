"""From a Caffe network and its calibration table to the two ncnn models that run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.graph import Blob
from int8calib.ncnn.convert.network import convert_network
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.optimize import optimize_model
from int8calib.ncnn.quantize import quantize_model, read_rows
from int8calib.table.formats import get_format
from int8calib.table.model import CalibrationTable


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


def int8_model(model: NcnnModel, table: CalibrationTable) -> NcnnModel:
    """The INT8 model of a float one; raises `TableError` for a table that does not fit."""
    rows = read_rows(get_format("ncnn").write(table), "the table")
    return replace(model, layers=quantize_model(model.layers, rows))


def ncnn_pair(net: Net, table: CalibrationTable, *, fold_bn: bool = True) -> NcnnPair:
    """Both ncnn models of a network.

    Parameters
    ----------
    net
        The float network.
    table
        Its calibration table.
    fold_bn
        Whether the table was made for folded BatchNorm, as is the default.

    Raises
    ------
    ModelError
        For a layer or option that ncnn does not have.
    TableError
        For a table that does not fit the network.
    """
    return converted_pair(convert_network(net), table, fold_bn=fold_bn)


def converted_pair(model: NcnnModel, table: CalibrationTable, *, fold_bn: bool = True) -> NcnnPair:
    """Both ncnn models of what `convert_network` gave; as `ncnn_pair`."""
    plain = _optimized(model, fold_bn=fold_bn)
    return NcnnPair(plain, int8_model(plain, table))
