"""A network and a calibration table to a network in which quantized layers run in INT8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Graph, Layer
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.errors import TableError
from int8calib.simulation.arithmetic import quantize
from int8calib.simulation.fusion import input_scales
from int8calib.simulation.layers import PREFIX, Int8Weights
from int8calib.table.model import CalibrationTable, LayerScales

FLOAT_TYPES = {
    "Convolution": "Convolution",
    "ConvolutionDepthWise": "Convolution",
    "InnerProduct": "InnerProduct",
}
"""The Caffe type that does the sums of each type that ncnn quantizes."""


def simulate(net: Net, table: CalibrationTable, *, fold_bn: bool | None = None) -> Net:
    """`net` as ncnn runs it with `table`: the same inputs, outputs and `forward`.

    Layers with rows in the table run in INT8: bottom and weights rounded half away from zero to
    -127..127, exact whole sums, then sum / (bottom scale x weight scale) + bias in float32. All
    others stay in float. Where ncnn2int8 fuses layers by a requantize step, a bottom is rounded
    with the scale that ncnn uses there. `fold_bn` says whether weights are as `ncnnoptimize`
    leaves them; None takes what the table's report says, or else True.

    Raises `TableError` for rows of a layer that the net does not have or ncnn does not quantize,
    and for a number of scales that does not fit the layer.
    """
    fold = folds(table) if fold_bn is None else fold_bn
    graph = fold_batch_norm(net.graph) if fold else net.graph
    twins = int8_layers(graph, table, optimized=fold)
    layers = tuple(twins.get(layer.name, layer) for layer in graph.layers)
    return Net(replace(graph, layers=layers), net.input_shapes)


def folds(table: CalibrationTable) -> bool:
    """Whether the report of `table` says that BatchNorm was folded; True where it is silent."""
    options = table.meta.get("options", {})
    return bool(options.get("fold_bn", True)) if isinstance(options, Mapping) else True


def int8_layers(graph: Graph, table: CalibrationTable, *, optimized: bool) -> dict[str, Layer]:
    """The INT8 twin of every layer of `graph` with rows in `table`, by name, in running order.

    `optimized` says whether the model went through ncnnoptimize, which decides what fuses.
    """
    known = {layer.name: layer for layer in quantized_layers(graph)}
    for rows in table.layers:
        _check(graph, known.get(rows.name), rows)
    chosen = {rows.name: rows for rows in table.layers}
    scales = {name: np.float32(rows.bottom_scale) for name, rows in chosen.items()}
    used = input_scales(graph, scales, optimized=optimized)
    return {
        name: _twin(layer, chosen[name], used[name])
        for name, layer in known.items()
        if name in chosen
    }


def _check(graph: Graph, layer: QuantizedLayer | None, rows: LayerScales) -> None:
    if layer is None:
        raise TableError(
            f"{graph.source}: the table has rows for {rows.name!r}, which is no Convolution or "
            "InnerProduct of this net; was it made for another model?"
        )
    if len(rows.weight_scales) != layer.rows:
        raise TableError(
            f"layer {rows.name}: {len(rows.weight_scales)} weight scales in the table; "
            f"the net needs {layer.rows}"
        )
    # The tool-v1 format leaves bottom scales open, and a scale must be a usable number.
    if not (np.isfinite(rows.bottom_scale) and rows.bottom_scale > 0):
        raise TableError(f"layer {rows.name}: bottom scale {rows.bottom_scale:g}; expected above 0")
    if not np.isfinite(rows.weight_scales).all():
        raise TableError(f"layer {rows.name}: a weight scale that is no finite number")


def _twin(found: QuantizedLayer, rows: LayerScales, scale: np.float32) -> Layer:
    """The layer with weight levels, factors and bias in place of its weights."""
    layer, weight = found.layer, found.layer.weights[0]
    weight_scales = np.asarray(rows.weight_scales, np.float32)
    levels = _weight_levels(found, weight_scales)
    outputs = _outputs(found)
    per_output = np.repeat(weight_scales, outputs // len(weight_scales))
    # ncnn takes a weight scale of 0 for a channel that gives its bias alone.
    product = np.float32(rows.bottom_scale) * per_output
    factors = np.where(per_output == 0, 0, 1 / np.where(per_output == 0, 1, product))
    bias = layer.weights[1].reshape(-1) if len(layer.weights) > 1 else np.zeros(outputs)
    held = Int8Weights(
        levels.reshape(weight.shape),
        factors.astype(np.float32),
        np.ascontiguousarray(bias, np.float32),
        np.array([scale], np.float32),
    )
    return replace(layer, type=PREFIX + FLOAT_TYPES[found.kind], weights=held.arrays())


def _outputs(layer: QuantizedLayer) -> int:
    if layer.kind == "InnerProduct":
        return layer.rows
    return int(layer.layer.params.convolution_param.num_output)


def _weight_levels(layer: QuantizedLayer, scales: Array) -> Array:
    """The weights as levels, in the shape and order of the Caffe weights."""
    rows = layer.weight_rows()
    levels = np.empty(rows.shape, np.float32)
    for row, scale, out in zip(rows, scales, levels, strict=True):
        quantize(row, scale, out)
    transposed = layer.kind == "InnerProduct" and layer.layer.params.inner_product_param
    return np.ascontiguousarray(levels.T) if transposed and transposed.transpose else levels
