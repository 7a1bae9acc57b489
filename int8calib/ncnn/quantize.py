"""An INT8 ncnn model from a float one and its calibration table, as ncnn2int8 makes it.

Source: ncnn, tools/quantize/ncnn2int8.cpp and quantize_to_int8 of src/mat.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.errors import ModelFileError, TableError, WeightsError
from int8calib.levels import LEVELS
from int8calib.ncnn.layout import blob_layout
from int8calib.ncnn.param import NcnnLayer, blob_readers
from int8calib.ncnn.rounded import CONVOLUTIONS, RoundedWeights, with_levels
from int8calib.ncnn.schema import tidied
from int8calib.ncnn.sound import check_graph, refuse_int8
from int8calib.ncnn.weights import store_weights

QUANTIZED = (*CONVOLUTIONS, "InnerProduct")
"""Layer types that a blob row and a weight row of the table make INT8."""
RECURRENT = ("RNN", "LSTM", "GRU")
BY_ROWS = (*RECURRENT, "Embed", "MultiHeadAttention")
"""Layer types that weight rows alone make INT8."""
_MOST_ROWS = 4
_REQUANTIZE = 100
_NUMBER = re.compile(
    r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|inf|infinity", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a table by their names: weight scales `<layer>_param_<k>`, bottom scales."""

    weights: Mapping[str, Array]
    bottoms: Mapping[str, Array]


def read_rows(text: str, name: str) -> Rows:
    """The rows of an ncnn table, as ncnn2int8 takes them.

    Parameters
    ----------
    text : str
        The table.
    name : str
        How errors call it.

    Raises
    ------
    TableError
        For a row that ncnn would misread: no number, none at all, a scale that is negative or no
        number, a bottom scale of 0 or infinity, twice the same name, or rows behind a blank line,
        where ncnn stops reading.
    """
    weights: dict[str, Array] = {}
    bottoms: dict[str, Array] = {}
    blank = 0
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words:
            blank = blank or number
            continue
        if blank:
            raise TableError(
                f"{name}:{number}: a row behind a blank line, where ncnn stops reading"
            )
        key, *values = words
        rows = weights if "_param_" in key else bottoms
        row = f"{name}:{number}: row {key[:60]!r}"
        if not values:
            raise TableError(f"{row} has no scale")
        # Python also takes 1_000 and digits of other scripts.
        if not line.isascii() or any("_" in value for value in values):
            values = [value if _NUMBER.fullmatch(value) else "?" for value in values]
        try:
            with np.errstate(over="ignore"):
                scales = np.array(values, np.float32)
        except ValueError:
            raise TableError(f"{row} holds what is no number") from None
        # 0 and infinity stand for channels whose weights are all 0.
        wrong = ~(scales >= 0) if rows is weights else ~((scales > 0) & np.isfinite(scales))
        if wrong.any():
            raise TableError(f"{row} holds the scale {scales[wrong][0]:g}, above 0 is right")
        if key in rows:
            raise TableError(f"{name}:{number}: row {key[:60]!r} is there twice")
        rows[key] = scales
    if not bottoms and not weights:
        raise TableError(f"{name}: holds no rows")
    return Rows(weights, bottoms)


def quantize_model(
    layers: Sequence[NcnnLayer],
    rows: Rows,
    name: str = "the table",
    *,
    fp32: bool = False,
    rounded: Mapping[str, RoundedWeights] = MappingProxyType({}),
    winograd: bool = True,
    source: str = "the model",
) -> tuple[NcnnLayer, ...]:
    """The INT8 model that `layers` and the table `rows` give.

    Parameters
    ----------
    layers : sequence of NcnnLayer
        A float model with weights; best as ncnnoptimize leaves it.
    rows : Rows
        The table.
    name : str
        How errors call the table.
    fp32 : bool
        Store what stays in float as float32; ncnn2int8 stores tagged blobs as float16.
    rounded : mapping of str to RoundedWeights
        By layer: weights that are levels already, in place of those that plain rounding gives.
    winograd : bool
        Whether ncnn may run by int8 winograd, which limits what a row of `rounded` adds up to.
    source : str
        How errors call the model.

    Returns
    -------
    tuple of NcnnLayer
        Without `rounded` byte for byte what ncnn2int8 writes; shape hints are left out.

    Raises
    ------
    TableError
        For rows that do not fit the model: a layer that is not there or cannot be INT8, a count
        that differs, half a pair, some of the weight rows of a layer. ncnn2int8 goes on and leaves
        layers in float.
    ModelFileError
        For a model that is INT8 already.
    WeightsError
        For `rounded` levels of a layer that stays in float, of another count, beyond -127..127,
        or that add up to more than int8 winograd holds.
    """
    check_graph(layers, source)
    refuse_int8(layers, source)
    _check_rows(layers, rows, name)
    made = [_quantized(layer, rows, name) for layer in layers]
    int8 = {layer.name for layer in made if layer.type in QUANTIZED and layer.integer(8)}
    for stray in rounded.keys() - int8:
        raise WeightsError(f"layer {stray!r}: levels for its weights, and it stays in float")
    made = [
        with_levels(layer, rounded[layer.name], winograd=winograd)
        if layer.name in rounded
        else layer
        for layer in made
    ]
    made = _requantized(made)
    return tuple(map(tidied, store_weights(made, half=not fp32)))


def _check_rows(layers: Sequence[NcnnLayer], rows: Rows, name: str) -> None:
    """Raise `TableError` for the first row that has no layer to take it."""
    known = {layer.name: layer for layer in layers}
    for key in rows.bottoms:
        layer = known.get(key)
        if layer is None or layer.type not in QUANTIZED:
            found = "no such layer" if layer is None else f"a {layer.type}, which stays in float"
            raise TableError(
                f"{name}: row {key!r}: the model has {found}; was the table made for this model?"
            )
    for key in rows.weights:
        owner = key.rpartition("_param_")[0]
        layer = known.get(owner)
        if layer is None or layer.type not in _KINDS:
            found = "no such layer" if layer is None else f"a {layer.type}, which stays in float"
            raise TableError(
                f"{name}: row {key!r}: the model has {found} {owner!r}; was the table made for "
                "this model?"
            )
        if layer.type in QUANTIZED and owner not in rows.bottoms:
            raise TableError(f"{name}: layer {owner!r} has weight scales and no bottom scale")


def _quantized(layer: NcnnLayer, rows: Rows, name: str) -> NcnnLayer:
    kind = _KINDS.get(layer.type)
    if kind is None:
        return layer
    if layer.type in BY_ROWS and not _has_rows(layer, rows):
        return layer
    return kind(layer, rows, name)


def _has_rows(layer: NcnnLayer, rows: Rows) -> bool:
    """Whether the table has any weight row of the layer; one without stays in float."""
    return any(f"{layer.name}_param_{index}" in rows.weights for index in range(_MOST_ROWS))


def _weight_rows(layer: NcnnLayer, rows: Rows, name: str, index: int, count: int) -> Array:
    key = f"{layer.name}_param_{index}"
    scales = rows.weights.get(key)
    if scales is None:
        raise TableError(f"{name}: layer {layer.name!r} ({layer.type}) needs a row {key!r}")
    if len(scales) != count:
        raise TableError(
            f"{name}: row {key!r} has {len(scales)} scales; the layer has {count} rows of weights"
        )
    return scales


def _float_weights(layer: NcnnLayer) -> list[NDArray[Any]]:
    """The layer's blobs as float32, however they are stored."""
    return [np.asarray(array, np.float32) for array in layer.weights]


def _convolution(layer: NcnnLayer, rows: Rows, name: str) -> NcnnLayer:
    if layer.name not in rows.bottoms or not layer.weights:
        return layer
    depthwise = layer.type == "ConvolutionDepthWise"
    count = layer.integer(7, 1) if depthwise else layer.integer(0)
    bottom = rows.bottoms[layer.name]
    if len(bottom) != 1:
        raise TableError(f"{name}: row {layer.name!r} has {len(bottom)} scales; 1 is right")
    scales = _weight_rows(layer, rows, name, 0, count)
    weight, *rest = _float_weights(layer)
    if len(weight) % count:
        raise ModelFileError(f"layer {layer.name!r}: {len(weight)} weights in {count} rows")
    levels = to_levels(weight.reshape(count, -1), scales[:, None]).reshape(-1)
    changed = layer.with_params(p8=1 if depthwise else 2)
    return replace(changed, weights=(levels, *rest, scales, bottom))


def to_levels(values: Array, scales: Array) -> NDArray[np.int8]:
    """Round half away from zero and clamp to -127..127, in float32 as ncnn does on x86."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = values * scales
        shifted = scaled + np.copysign(np.float32(0.5), scaled)
    # What int32 cannot hold becomes its smallest number on x86, and so does NaN.
    fits = np.abs(shifted) < np.float32(2.0**31)
    whole = np.where(fits, np.trunc(shifted), np.float32(-LEVELS))
    levels: NDArray[np.int8] = np.clip(whole, -LEVELS, LEVELS).astype(np.int8)
    return levels


def _embed(layer: NcnnLayer, rows: Rows, name: str) -> NcnnLayer:
    (scale,) = _weight_rows(layer, rows, name, 0, 1)
    weight, *rest = _float_weights(layer)
    levels = to_levels(weight, np.array([scale], np.float32))
    return replace(layer.with_params(p18=2), weights=(levels, *rest, np.array([scale], np.float32)))


def _recurrent(layer: NcnnLayer, rows: Rows, name: str) -> NcnnLayer:
    """Input and recurrent weights with a scale a row; the bias and a projection stay in float."""
    inputs, bias, recurrent, *rest = _float_weights(layer)
    count = blob_layout(layer.with_params(p8=2))[-1].size
    scales = [_weight_rows(layer, rows, name, index, count) for index in (0, 1)]
    levels = [
        to_levels(weight.reshape(count, -1), scale[:, None]).reshape(-1)
        for weight, scale in zip((inputs, recurrent), scales, strict=True)
    ]
    return replace(layer.with_params(p8=2), weights=(levels[0], bias, levels[1], *rest, *scales))


def _attention(layer: NcnnLayer, rows: Rows, name: str) -> NcnnLayer:
    embed = layer.integer(0)
    weights = _float_weights(layer)
    counts = (embed, embed, embed, 1)
    scales = [_weight_rows(layer, rows, name, i, count) for i, count in enumerate(counts)]
    for i, (count, scale) in enumerate(zip(counts, scales, strict=True)):
        weights[2 * i] = to_levels(weights[2 * i].reshape(count, -1), scale[:, None]).reshape(-1)
    return replace(layer.with_params(p18=2), weights=(*weights, *scales))


def _gemm(layer: NcnnLayer, rows: Rows, name: str) -> NcnnLayer:
    """Constant A a scale a row, constant B one scale, both from their absmax; no table needed."""
    m, n, k = (layer.integer(key) for key in (7, 8, 9))
    weights, scales = _float_weights(layer), []
    place = 0
    if layer.integer(4):
        a = weights[0].reshape(k, m).T if layer.integer(2) else weights[0].reshape(m, k)
        absmax = np.abs(a).max(axis=1)
        scales.append(_absmax_scales(absmax))
        weights[0] = to_levels(a, scales[-1][:, None]).reshape(-1)
        layer = layer.with_params(p2=0)
        place = 1
    if layer.integer(5):
        b = weights[place].reshape(n, k) if layer.integer(3) else weights[place].reshape(k, n).T
        scales.append(_absmax_scales(np.abs(b).max(keepdims=True).reshape(1)))
        weights[place] = to_levels(b, scales[-1]).reshape(-1)
        layer = layer.with_params(p3=1)
    return replace(layer.with_params(p18=2), weights=(*weights, *scales))


def _absmax_scales(absmax: Array) -> Array:
    """127 / absmax, 1 where that is 0."""
    scales = np.ones_like(absmax, np.float32)
    np.divide(np.float32(LEVELS), absmax, out=scales, where=absmax != 0)
    return scales


def _attention_product(layer: NcnnLayer, rows: Rows, name: str) -> NcnnLayer:
    """SDPA quantizes both its products by itself."""
    return layer.with_params(p18=2)


_KINDS: Mapping[str, Callable[[NcnnLayer, Rows, str], NcnnLayer]] = {
    **dict.fromkeys(QUANTIZED, _convolution),
    **dict.fromkeys(RECURRENT, _recurrent),
    "Embed": _embed,
    "MultiHeadAttention": _attention,
    "Gemm": _gemm,
    "SDPA": _attention_product,
}


def _requantized(layers: list[NcnnLayer]) -> list[NcnnLayer]:
    """Let INT8 convolutions whose readers are all INT8 convolutions hand levels on."""
    readers = blob_readers(layers)

    def bottom_scale(blob: str) -> Array | None:
        """The bottom scale of the one INT8 convolution that reads `blob`, else None."""
        first = next((r for r in readers.get(blob, []) if r.type in CONVOLUTIONS), None)
        if first is None or len(first.bottoms) != 1 or not first.integer(8):
            return None
        scale: Array = first.weights[-1]
        return scale

    made = []
    for layer in layers:
        if layer.type in CONVOLUTIONS and layer.integer(8):
            scale = bottom_scale(layer.tops[0])
            split = next((r for r in readers.get(layer.tops[0], []) if r.type == "Split"), None)
            if scale is None and split is not None:
                scales = [bottom_scale(top) for top in split.tops]
                if all(each is not None for each in scales):
                    scale = scales[0]
            if scale is not None:
                layer = replace(
                    layer.with_params(p8=layer.integer(8) + _REQUANTIZE),
                    weights=(*layer.weights, scale),
                )
        made.append(layer)
    return made
