"""Give blobs that are never negative all 255 levels of INT8, by an offset that weights take back.

INT8 in ncnn has the levels -127 to 127, and a blob behind a ReLU uses only half of them. Stored
less half of its threshold, it uses all: rounding it costs a quarter of the noise. The layer that
makes the blob gets another bias, and a Clip in place of its ReLU; the layers that read it take the
offset back in theirs. Zero stays one of the levels. That is asymmetric quantization (Krishnamoorthi
2018, arXiv:1806.08342) by layers that ncnn has; it costs nothing when the model runs.

Where a layer pads its bottom, the border must hold the level of zero. ncnn on x86 pads with a level
from 0 up only (on ARM with any, see its padding_arm.cpp), so the blob is stored negated there, and
zero is 127.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.levels import LEVELS
from int8calib.ncnn.param import NcnnLayer, Value, blob_readers
from int8calib.ncnn.quantize import QUANTIZED
from int8calib.ncnn.rounded import CONVOLUTIONS
from int8calib.table.model import CalibrationTable

PASSING = frozenset(
    (
        "Concat",
        "Crop",
        "Dropout",
        "Flatten",
        "Noop",
        "Permute",
        "Reorg",
        "Reshape",
        "ShuffleChannel",
        "Slice",
        "Split",
        "Squeeze",
        "ExpandDims",
    )
)
"""Types that hand on values as they are, so that all their blobs may have one offset."""
RELU, CLIP = 1, 3
"""What parameter 9 of a layer says of its activation; 10 holds the limits of a Clip."""
BEYOND = 3.402823e38
"""A limit that no value reaches."""
PAD_VALUE = 18
_PADS = ((4, 4), (15, 4), (14, 4), (16, 14))
"""The parameters that say how wide a border is, each with the one that stands for it."""


@dataclass(frozen=True)
class OffsetGroup:
    """Blobs that must have one offset, by the layers around them.

    Attributes
    ----------
    makers : tuple of str
        The layers that make values.
    readers : tuple of str
        The INT8 layers that multiply them.
    negated : bool
        Whether the values are stored negated.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    negated: bool


def offset_groups(layers: Sequence[NcnnLayer], int8: Collection[str]) -> tuple[OffsetGroup, ...]:
    """Find the blobs that can have an offset.

    All that is read of them must be read by INT8 layers, and all that makes them must end with a
    ReLU, or with a Clip whose lower limit is 0.

    Parameters
    ----------
    layers : sequence of NcnnLayer
        A float model, activations fused into layers as ncnnoptimize leaves it.
    int8 : collection of str
        The layers that will be INT8.
    """
    readers = blob_readers(layers)
    blobs = {top: top for layer in layers for top in layer.tops}

    def root(blob: str) -> str:
        while blobs[blob] != blob:
            blobs[blob] = blob = blobs[blobs[blob]]
        return blob

    for layer in layers:
        if _passes(layer):
            first, *others = (*layer.bottoms, *layer.tops)
            for other in others:
                blobs[root(other)] = root(first)
    fixed = {root(top) for top in blobs if top not in readers}
    found: dict[str, tuple[list[NcnnLayer], list[NcnnLayer], list[NcnnLayer]]] = {}
    for layer in layers:
        if _passes(layer):
            found.setdefault(root(layer.tops[0]), ([], [], []))[2].append(layer)
            continue
        for bottom in layer.bottoms:
            if layer.name in int8 and not layer.number(PAD_VALUE, 0):
                found.setdefault(root(bottom), ([], [], []))[1].append(layer)
            else:
                fixed.add(root(bottom))
        for top in layer.tops:
            if _never_negative(layer):
                found.setdefault(root(top), ([], [], []))[0].append(layer)
            else:
                fixed.add(root(top))
    groups = []
    for key, (makers, reading, passing) in found.items():
        negated = any(_pads(layer) for layer in reading)
        if key in fixed or (negated and any(_takes_largest(layer) for layer in passing)):
            continue
        groups.append(
            OffsetGroup(
                tuple(layer.name for layer in makers),
                tuple(layer.name for layer in reading),
                negated,
            )
        )
    return tuple(groups)


def _passes(layer: NcnnLayer) -> bool:
    """Whether an offset of a layer's bottoms is one of its tops."""
    if layer.type == "Dropout":
        return layer.number(0, 1.0) == 1
    if layer.type == "Pooling":
        return _takes_largest(layer) or (layer.integer(0) == 1 and bool(layer.integer(4)))
    return layer.type in PASSING and bool(layer.bottoms)


def _takes_largest(layer: NcnnLayer) -> bool:
    return layer.type == "Pooling" and layer.integer(0) == 0


def _never_negative(layer: NcnnLayer) -> bool:
    if layer.type not in QUANTIZED or len(layer.tops) != 1:
        return False
    kind = layer.integer(9)
    return kind == RELU or (kind == CLIP and _limits(layer)[0] == 0)


def _limits(layer: NcnnLayer) -> tuple[float, float]:
    """What the activation of a layer holds its values to."""
    if layer.integer(9) == RELU:
        return 0.0, BEYOND
    low, high = (float(value) for value in layer.array(10))
    return low, high


def _pads(layer: NcnnLayer) -> bool:
    if layer.type not in CONVOLUTIONS:
        return False
    return any(layer.integer(key, layer.integer(other)) for key, other in _PADS)


def with_offsets(
    layers: Sequence[NcnnLayer], groups: Sequence[OffsetGroup]
) -> tuple[NcnnLayer, ...]:
    """Store the blobs of `groups` with an offset.

    Parameters
    ----------
    layers : sequence of NcnnLayer
        An INT8 model. The scales of bottoms that belong to a group are equal, and mean that many
        levels from 0 to 254.
    groups : sequence of OffsetGroup
        Those of its float model.
    """
    made = {layer.name: layer for layer in layers}
    for group in groups:
        scale = np.float32(_bottom_scale(made[group.readers[0]]))
        offset = float(np.float32(LEVELS) / scale)
        for name in dict.fromkeys(group.readers):
            made[name] = _reading(made[name], offset, negated=group.negated)
        for name in dict.fromkeys(group.makers):
            made[name] = _making(made[name], offset, negated=group.negated)
    return tuple(made[layer.name] for layer in layers)


def finer_rows(table: CalibrationTable, groups: Sequence[OffsetGroup]) -> CalibrationTable:
    """Return a table whose bottoms of `groups` have steps half as large, one scale each group."""
    scales: dict[str, float] = {}
    for group in groups:
        scale = min(table[name].bottom_scale for name in group.readers)
        scales.update(dict.fromkeys(group.readers, 2 * scale))
    rows = (replace(r, bottom_scale=scales.get(r.name, r.bottom_scale)) for r in table.layers)
    return replace(table, layers=tuple(rows))


def _bias_key(layer: NcnnLayer) -> str:
    return "p1" if layer.type == "InnerProduct" else "p5"


def _has_bias(layer: NcnnLayer) -> bool:
    return bool(layer.integer(int(_bias_key(layer)[1:])))


def _scales(layer: NcnnLayer) -> tuple[Array, Array]:
    """The weight scales and the bottom's scale of an INT8 layer."""
    first = 2 if _has_bias(layer) else 1
    return layer.weights[first], layer.weights[first + 1]


def _bottom_scale(layer: NcnnLayer) -> float:
    return float(_scales(layer)[1][0])


def _with_bias(
    layer: NcnnLayer, weights: Array, bias: NDArray[np.float64], **params: Value
) -> NcnnLayer:
    rest = layer.weights[2 if _has_bias(layer) else 1 :]
    changed = layer.with_params(**{_bias_key(layer): 1}, **params)
    return replace(changed, weights=(weights, np.asarray(bias, np.float32), *rest))


def _parts(layer: NcnnLayer) -> tuple[Array, NDArray[np.float64]]:
    """The weights of a layer, and its bias or zeros, as float64."""
    outputs = layer.integer(0)
    bias = layer.weights[1] if _has_bias(layer) else np.zeros(outputs)
    return layer.weights[0], np.asarray(bias, np.float64).reshape(-1)


def _reading(layer: NcnnLayer, offset: float, *, negated: bool) -> NcnnLayer:
    """The layer for a bottom that has an offset."""
    levels, bias = _parts(layer)
    scales = np.asarray(_scales(layer)[0], np.float64)
    per_output = np.repeat(scales, len(bias) // len(scales))
    sums = levels.reshape(len(bias), -1).sum(axis=1, dtype=np.float64)
    # A scale of 0 is one of a channel that gives its bias alone.
    sums = np.divide(sums, per_output, out=np.zeros_like(sums), where=per_output != 0)
    params: Mapping[str, Value] = {}
    if _pads(layer):
        params = {f"p{PAD_VALUE}": float(LEVELS)}
    return _with_bias(layer, -levels if negated else levels, bias + offset * sums, **params)


def _making(layer: NcnnLayer, offset: float, *, negated: bool) -> NcnnLayer:
    """The layer with a top that has an offset."""
    weights, bias = _parts(layer)
    low, high = _limits(layer)
    if negated:
        limits = (offset - high if high < BEYOND else -BEYOND, offset - low)
        return _with_bias(layer, -weights, offset - bias, p9=CLIP, p10=limits)
    limits = (low - offset, high - offset if high < BEYOND else BEYOND)
    return _with_bias(layer, weights, bias - offset, p9=CLIP, p10=limits)
