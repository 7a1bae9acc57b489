"""What a calibration needs to know of the layers of an ncnn model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.calibration.layers import QuantLayer
from int8calib.calibration.scales import DEAD_ABSMAX, DEAD_SCALE
from int8calib.errors import ModelFileError
from int8calib.levels import LEVELS
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.quantize import QUANTIZED, RECURRENT
from int8calib.ncnn.schema import value_of
from int8calib.ncnn.sound import refuse_int8
from int8calib.table.rules import grouped_problem, name_problem

_DYNAMIC = 19
"""The parameter of a convolution whose weights are a bottom."""


def split_origins(layers: Sequence[NcnnLayer]) -> dict[str, str]:
    """Return the blob that each top of a Split is a copy of."""
    origins: dict[str, str] = {}
    for layer in layers:
        if layer.type == "Split" and layer.bottoms:
            bottom = layer.bottoms[0]
            origins.update(dict.fromkeys(layer.tops, origins.get(bottom, bottom)))
    return origins


def input_shapes(layers: Sequence[NcnnLayer]) -> dict[str, Shape]:
    """Return the shape of each input, with an axis of one image in front.

    Parameters
    ----------
    layers : sequence of NcnnLayer
        The model.

    Returns
    -------
    dict of str to Shape
        ``(1, C, H, W)``, ``(1, H, W)`` or ``(1, W)``; 0 where a size is not known. What the Input
        layer leaves out is taken from a layer that reads the blob, ``()`` where none tells it.
    """
    shapes: dict[str, Shape] = {}
    origins = split_origins(layers)
    for layer in layers:
        if layer.type != "Input":
            continue
        width, height, channels = (layer.integer(key) for key in (0, 1, 2))
        for top in layer.tops:
            if channels > 0:
                shapes[top] = (1, channels, max(height, 0), max(width, 0))
            elif height > 0:
                shapes[top] = (1, height, max(width, 0))
            elif width > 0:
                shapes[top] = (1, width)
            else:
                shapes[top] = _shape_read(layers, origins, top)
    return shapes


def _shape_read(layers: Sequence[NcnnLayer], origins: Mapping[str, str], blob: str) -> Shape:
    """The shape that the weights of a layer behind `blob` are for, as far as they tell it."""
    for layer in layers:
        if blob not in (origins.get(bottom, bottom) for bottom in layer.bottoms):
            continue
        if layer.type in QUANTIZED[:2] and not layer.integer(_DYNAMIC):
            out, height, width = (_size(layer, key) for key in (0, 11, 1))
            group = layer.integer(7, 1) if layer.type == QUANTIZED[1] else 1
            channels = layer.integer(6) * group // max(out * height * width, 1)
            return (1, channels, 0, 0)
        if layer.type in ("BatchNorm", "Scale", "PReLU") and layer.integer(0) > 1:
            return (1, layer.integer(0), 0, 0)
        if layer.type == "Embed":
            return (1, 0)
        if row_counts(layer):
            return (1, 0, _width(layer))
    return ()


def _width(layer: NcnnLayer) -> int:
    """How long the vectors of a sequence are that RNN, LSTM, GRU or MultiHeadAttention reads."""
    if layer.type == "MultiHeadAttention":
        return layer.integer(2) // max(layer.integer(0), 1)
    rows = row_counts(layer)[0]
    return layer.integer(1) // max(rows, 1)


def _size(layer: NcnnLayer, key: int) -> int:
    """An int parameter, its default where the file leaves it out."""
    value = value_of(layer, key)
    if not isinstance(value, int):
        raise ModelFileError(f"layer {layer.name!r}: {key}={value}; expected one whole number")
    return value


def quant_layers(
    layers: Sequence[NcnnLayer], source: str
) -> tuple[tuple[QuantLayer, ...], dict[str, str]]:
    """Describe the layers that ncnn2int8 quantizes by a table.

    Parameters
    ----------
    layers : sequence of NcnnLayer
        A float model.
    source : str
        How errors call it.

    Returns
    -------
    layers : tuple of QuantLayer
        In running order. A blob that passes through Split is one blob for all its readers.
    blocked : dict of str to str
        Layers of these types that stay in float, with the reason.

    Raises
    ------
    ModelFileError
        For a model that is INT8 already, and for weights that do not fit the parameters.
    """
    origins = split_origins(layers)
    inputs = {top for layer in layers if layer.type == "Input" for top in layer.tops}
    described: dict[str, QuantLayer] = {}
    blocked: dict[str, str] = {}
    for layer in layers:
        if layer.type not in QUANTIZED or not layer.bottoms:
            continue
        refuse_int8((layer,), source)
        problem = name_problem(layer.name)
        if layer.type != "InnerProduct" and layer.integer(_DYNAMIC):
            blocked[layer.name] = "its weights are a blob, not in the file"
        elif problem is not None:
            blocked[layer.name] = problem
        elif layer.name in described:
            raise ModelFileError(f"{source}: two layers are called {layer.name!r}; rename one")
        else:
            bottom = origins.get(layer.bottoms[0], layer.bottoms[0])
            described[layer.name] = _described(layer, bottom, bottom in inputs, source)
    ends = _first_and_last(layers, frozenset(described))
    return tuple(
        replace(layer, first=ends[name][0], last=ends[name][1]) for name, layer in described.items()
    ), blocked


def _described(layer: NcnnLayer, bottom: str, reads_input: bool, source: str) -> QuantLayer:
    """One layer with its weights as ncnn lays them out, output channels first."""
    out = layer.integer(0)
    depthwise = layer.type == "ConvolutionDepthWise"
    group = layer.integer(7, 1) if depthwise else 1
    if layer.type == "InnerProduct":
        kernel = stride = dilation = (1, 1)
    else:
        kernel, stride, dilation = (
            (_size(layer, high), _size(layer, wide)) for high, wide in ((11, 1), (13, 3), (12, 2))
        )
    count = layer.integer(2 if layer.type == "InnerProduct" else 6)
    row = out * kernel[0] * kernel[1]
    if min(out, group, *kernel) < 1 or count < 1 or count % row or out % group:
        raise ModelFileError(
            f"{source}: layer {layer.name!r}: {count} weights for {out} outputs, {group} groups "
            f"and a kernel of {kernel[0]}x{kernel[1]}, which do not fit"
        )

    def weights() -> Array:
        if not layer.weights:
            raise ModelFileError(f"{source}: layer {layer.name!r}: its weights were not read")
        return np.asarray(layer.weights[0], np.float32).reshape(out, -1, *kernel)

    return QuantLayer(
        layer.name,
        layer.type,
        bottom,
        weights,
        rows=group if depthwise else out,
        outputs=out,
        group=group,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        reads_input=reads_input,
    )


def _first_and_last(
    layers: Sequence[NcnnLayer], names: frozenset[str]
) -> dict[str, tuple[bool, bool]]:
    """Whether none of these layers stands before each of them, and whether none stands behind."""
    behind: set[str] = set()
    first = {}
    for layer in layers:
        if layer.name in names:
            first[layer.name] = behind.isdisjoint(layer.bottoms[:1])
        if layer.name in names or not behind.isdisjoint(layer.bottoms):
            behind.update(layer.tops)
    before: set[str] = set()
    last = {}
    for layer in reversed(layers):
        if layer.name in names:
            last[layer.name] = before.isdisjoint(layer.tops)
        if layer.name in names or not before.isdisjoint(layer.tops):
            before.update(layer.bottoms)
    return {name: (first[name], last[name]) for name in first}


def weight_rows(layers: Sequence[NcnnLayer]) -> dict[str, Array]:
    """Return the scales of weights that ncnn runs in INT8 without a scale of their bottom.

    Parameters
    ----------
    layers : sequence of NcnnLayer
        A float model with weights.

    Returns
    -------
    dict of str to float32 (rows,)
        By the key of the row, ``<layer>_param_<k>``: of Embed one scale, of MultiHeadAttention
        one for each row of query, key and value and one for the output, of RNN, LSTM and GRU one
        for each row of input and recurrent weights. Each is 127 over the absmax of the row
        (source: ncnn, tools/quantize/ncnn2table.cpp), 1 for a row of zeros.
    """
    rows: dict[str, Array] = {}
    for layer in layers:
        if name_problem(layer.name) is not None:
            continue  # ncnn would not find its rows
        for index, (weights, count) in enumerate(_row_weights(layer)):
            size = np.abs(np.asarray(weights, np.float32)).reshape(count, -1).max(axis=1)
            scales = np.full(count, DEAD_SCALE, np.float32)
            alive = size >= DEAD_ABSMAX
            scales[alive] = np.float32(LEVELS) / size[alive]
            rows[f"{layer.name}_param_{index}"] = scales
    return rows


def row_counts(layer: NcnnLayer) -> tuple[int, ...]:
    """Return how many scales each weight row of such a layer has; none for other types."""
    if layer.type == "Embed":
        return (1,)
    if layer.type in RECURRENT:
        rows = blob_layout(layer.with_params(p8=2))[-1].size
        return (rows, rows)
    if layer.type == "MultiHeadAttention":
        embed = layer.integer(0)
        return (embed, embed, embed, 1)
    return ()


def _row_weights(layer: NcnnLayer) -> Iterator[tuple[Array, int]]:
    """Each part of the weights that has a row, and the number of its scales."""
    for index, count in enumerate(row_counts(layer)):
        yield layer.weights[2 * index], count


def grouped_by_eight(layers: Sequence[NcnnLayer]) -> list[str]:
    """Return the layers that ncnn's x86 build computes wrongly in INT8 with its default options.

    They are grouped, not depthwise, with 8 or a multiple of 8 outputs a group: unless requantized,
    their output is uninitialized memory where packing is on.
    """
    found = []
    for layer in layers:
        if layer.type != "ConvolutionDepthWise" or layer.integer(_DYNAMIC):
            continue
        out, group = layer.integer(0), max(layer.integer(7, 1), 1)
        if grouped_problem(group, out) is not None:
            found.append(layer.name)
    return found
