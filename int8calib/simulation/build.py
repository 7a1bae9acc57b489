"""Put INT8 layers into a network, by a calibration table, as ncnn does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import QUANTIZED_TYPES, Graph, Layer
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.caffe.network.shapes import Obstacle, reach
from int8calib.errors import TableError, WeightsError
from int8calib.limits import check_flag
from int8calib.simulation.arithmetic import SIGNED, UNSIGNED, quantize
from int8calib.simulation.fusion import input_scales
from int8calib.simulation.layers import PREFIX, Int8Weights
from int8calib.table.model import CalibrationTable, LayerScales, require_table

FLOAT_TYPES = {
    "Convolution": "Convolution",
    "ConvolutionDepthWise": "Convolution",
    "InnerProduct": "InnerProduct",
}
"""The Caffe type that does the sums of each type that ncnn quantizes."""
SMALLEST = 2.0**-126
"""The smallest normal float32."""


def simulate(net: Net, table: CalibrationTable, *, fold_bn: bool | None = None) -> Net:
    """Make the network that ncnn runs with a table: the same inputs, outputs and `forward`.

    Layers with rows in the table run in INT8: bottom and weights rounded half away from zero to
    -127..127, exact whole sums, then sum / (bottom scale x weight scale) + bias in float32. All
    others stay in float. Where ncnn2int8 fuses layers by a requantize step, a bottom is rounded
    with the scale that ncnn uses there.

    Parameters
    ----------
    net : Net
        The float network.
    table : CalibrationTable
        The calibration table.
    fold_bn : bool, optional
        Whether weights are as `ncnnoptimize` leaves them; None takes what the table's report
        says, or else True.

    Returns
    -------
    Net
        The network in INT8.

    Raises
    ------
    TableError
        For rows of a layer that the network does not have or ncnn does not quantize, scales that
        mean nothing, and a number of scales that does not fit the layer.
    WeightsError
        For a network without weights.
    OptionError
        For something that is no `CalibrationTable`.
    """
    require_table(table)
    fold = folds(table, fold_bn)
    graph = fold_batch_norm(net.graph) if fold else net.graph
    int8 = int8_layers(graph, table, optimized=fold, inputs=net.input_shapes)
    layers = tuple(int8.get(layer.name, layer) for layer in graph.layers)
    return Net(replace(graph, layers=layers), net.input_shapes)


def folds(table: CalibrationTable, given: bool | None = None) -> bool:
    """Whether BatchNorm is folded: as `given`, or as the table's report says; True without both.

    Raises `OptionError` or `TableError` where it is neither true nor false.
    """
    if given is not None:
        check_flag(given, "fold_bn")
        return bool(given)
    options = table.meta.get("options", {})
    fold = options.get("fold_bn", True) if isinstance(options, Mapping) else True
    if not isinstance(fold, bool):
        raise TableError(f"the table's report has fold_bn {fold!r}; expected true or false")
    return fold


def int8_layers(
    graph: Graph,
    table: CalibrationTable,
    *,
    optimized: bool,
    inputs: Mapping[str, Shape] | None = None,
) -> dict[str, Layer]:
    """Make the INT8 form of every layer with rows in a table.

    Parameters
    ----------
    graph
        The network, with BatchNorm folded if the model went through ncnnoptimize.
    table
        The calibration table.
    optimized
        Whether the model went through ncnnoptimize, which decides what fuses.
    inputs
        The shapes of the inputs. A layer that cannot run with them stays in float; without, all
        layers can.

    Returns
    -------
    dict of Layer
        By name, in running order; they take the place of the float layers.

    Raises
    ------
    TableError, WeightsError
        As `simulate`.
    """
    known = {layer.name: layer for layer in quantized_layers(graph)}
    blocked = {} if inputs is None else reach(graph, inputs).blocked
    for rows in table.layers:
        layer = known.get(rows.name)
        if layer is None:
            _check_stranger(graph, rows.name, blocked)
        elif layer.layer not in blocked:
            _check(layer, rows)
    chosen = {rows.name: rows for rows in table.layers}
    scales = {name: np.float32(rows.bottom_scale) for name, rows in chosen.items()}
    used = input_scales(graph, scales, optimized=optimized)
    return {
        name: _int8_layer(layer, chosen[name], used[name])
        for name, layer in known.items()
        if name in chosen and layer.layer not in blocked
    }


def _check_stranger(graph: Graph, name: str, blocked: Mapping[Layer, Obstacle]) -> None:
    """Raise `TableError` for rows of what is no layer to quantize; one that cannot run may stay."""
    layer = next((layer for layer in graph.layers if layer.name == name), None)
    if layer is not None and layer in blocked and layer.type in QUANTIZED_TYPES:
        return
    if layer is None:
        found = "which this net does not have"
    elif layer in blocked:
        found = f"which cannot run ({blocked[layer]})"
    else:
        found = f"which is of type {layer.type} and no Convolution or InnerProduct"
    raise TableError(
        f"{graph.source}: the table has rows for {name!r}, {found}; was it made for another model?"
    )


def _check(layer: QuantizedLayer, rows: LayerScales) -> None:
    """Raise `TableError` or `WeightsError` where INT8 cannot be computed with these rows."""
    if not layer.layer.weights:
        raise WeightsError(
            f"layer {rows.name}: has no weights, so it cannot run in INT8; give the caffemodel"
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
    # Sums are multiplied by 1 / product in float32; a product of 0 is a channel of the bias alone.
    product = np.abs(rows.weight_scales, dtype=np.float64) * rows.bottom_scale
    unusable = (product != 0) & ~((product > SMALLEST) & (product < 1 / SMALLEST))
    if unusable.any():
        scale = float(np.asarray(rows.weight_scales)[unusable][0])
        raise TableError(
            f"layer {rows.name}: bottom scale {rows.bottom_scale:g} times weight scale {scale:g} "
            "leaves the range of float32; expected scales that fit the values"
        )


def _int8_layer(layer: QuantizedLayer, rows: LayerScales, scale: np.float32) -> Layer:
    """The layer with weight levels, factors and bias in place of its weights."""
    caffe, weight = layer.layer, layer.layer.weights[0]
    weight_scales = np.asarray(rows.weight_scales, np.float32)
    levels = _weight_levels(layer, weight_scales)
    outputs = _outputs(layer)
    per_output = np.repeat(weight_scales, outputs // len(weight_scales))
    # ncnn takes a weight scale of 0 for a channel that gives its bias alone.
    finer = np.float32(2 if rows.unsigned else 1)
    product = np.float32(rows.bottom_scale) * finer * per_output
    factors = np.where(per_output == 0, 0, 1 / np.where(per_output == 0, 1, product))
    bias = caffe.weights[1].reshape(-1) if len(caffe.weights) > 1 else np.zeros(outputs)
    weights = Int8Weights(
        levels.reshape(weight.shape),
        factors.astype(np.float32),
        np.ascontiguousarray(bias, np.float32),
        np.array([scale * finer], np.float32),
        np.array(UNSIGNED if rows.unsigned else SIGNED, np.float32),
    )
    return replace(caffe, type=PREFIX + FLOAT_TYPES[layer.kind], weights=weights.arrays())


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
